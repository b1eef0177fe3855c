package robustprom_test

import (
	"context"
	"fmt"
	"log"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	robust "github.com/aminofox/robust-go-sdk"
	"github.com/aminofox/robust-go-sdk/robustprom"
)

func Example() {
	broker, err := robust.NewBroker(robust.WithTopic("orders", 1))
	if err != nil {
		log.Fatal(err)
	}
	defer broker.Close()
	client, err := broker.Client()
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

	registry := prometheus.NewRegistry()
	registry.MustRegister(
		robustprom.NewClientCollector(client.Metrics()),
		robustprom.NewBrokerCollector(broker),
	)
	http.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))

	producer, err := client.SyncProducer()
	if err != nil {
		log.Fatal(err)
	}
	if _, err := producer.Send(context.Background(), robust.NewMessage("orders", []byte("two books"))); err != nil {
		log.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		log.Fatal(err)
	}
	for _, f := range families {
		switch f.GetName() {
		case "robust_producer_messages_sent_total", "robust_broker_messages_stored_total":
			fmt.Println(f.GetName(), f.GetMetric()[0].GetCounter().GetValue())
		}
	}
	// Output:
	// robust_broker_messages_stored_total 1
	// robust_producer_messages_sent_total 1
}
