package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/aminofox/robust-go-sdk"
)

type topicCmd struct {
	Create   topicCreateCmd   `cmd:"" help:"Create a topic."`
	List     topicListCmd     `cmd:"" aliases:"ls" help:"List the topics."`
	Describe topicDescribeCmd `cmd:"" help:"Show partitions, offsets and configuration."`
	Delete   topicDeleteCmd   `cmd:"" aliases:"rm" help:"Delete topics with all of their messages."`
}

type topicCreateCmd struct {
	Name        string            `arg:"" help:"Name of the topic."`
	Partitions  int32             `short:"p" default:"1" help:"Number of partitions."`
	Set         map[string]string `short:"c" name:"set" placeholder:"KEY=VALUE" help:"Configuration: retention.hours, retention.bytes, segment.bytes, max.message.bytes."`
	IfNotExists bool              `help:"Be content with a topic that is there already."`
}

// Run creates a topic.
func (c *topicCreateCmd) Run(ctx context.Context, a *app) error {
	return a.withAdmin(ctx, func(ctx context.Context, admin *robust.AdminClient) error {
		err := admin.CreateTopic(ctx, c.Name, c.Partitions, c.Set)
		if errors.Is(err, robust.ErrTopicExists) && c.IfNotExists {
			return a.show(map[string]any{"topic": c.Name, "created": false}, func(w io.Writer) {
				fmt.Fprintf(w, "topic %s is there already\n", c.Name)
			})
		}
		if err != nil {
			return err
		}
		return a.show(map[string]any{"topic": c.Name, "partitions": c.Partitions, "created": true}, func(w io.Writer) {
			fmt.Fprintf(w, "topic %s created, %s\n", c.Name, plural(c.Partitions, "partition"))
		})
	})
}

type topicListCmd struct{}

// topicView is a topic as the commands show it.
type topicView struct {
	Name       string            `json:"name"`
	ID         string            `json:"id,omitempty"`
	Messages   *int64            `json:"messages"` // nil from brokers that do not tell
	Config     map[string]string `json:"config,omitempty"`
	Partitions []partitionView   `json:"partitions"`
}

type partitionView struct {
	ID     int32  `json:"id"`
	Leader string `json:"leader"`
	Oldest *int64 `json:"oldest"` // offset of the oldest message that is kept; nil likewise
	Newest *int64 `json:"newest"` // the high-water mark
}

// viewTopics finds what there is of these topics, or of all.
func viewTopics(ctx context.Context, admin *robust.AdminClient, names []string) ([]topicView, error) {
	topics, err := admin.GetMetadata(ctx, names)
	if err != nil {
		return nil, err
	}
	views := make([]topicView, 0, len(topics))
	for _, t := range topics {
		oldest, newest, err := bounds(ctx, admin, t.Name)
		if errors.Is(err, robust.ErrTopicNotFound) && len(names) == 0 {
			continue // It was deleted a moment ago.
		}
		told := !errors.Is(err, robust.ErrUnsupported)
		if err != nil && told {
			return nil, err
		}
		views = append(views, viewTopic(&t, told, oldest, newest))
	}
	return views, nil
}

// viewTopic puts together what is known; told says whether the offsets are.
func viewTopic(t *robust.TopicMetadata, told bool, oldest, newest map[int32]int64) topicView {
	v := topicView{Name: t.Name, ID: t.ID, Config: t.Config, Partitions: []partitionView{}}
	var messages int64
	for _, p := range t.Partitions {
		view := partitionView{ID: p.ID, Leader: p.Leader}
		if told {
			from, to := oldest[p.ID], newest[p.ID]
			view.Oldest, view.Newest = &from, &to
			messages += to - from
		}
		v.Partitions = append(v.Partitions, view)
	}
	if told {
		v.Messages = &messages
	}
	return v
}

// bounds are the offsets of the oldest messages of a topic, and the high-water marks.
func bounds(ctx context.Context, admin *robust.AdminClient, topic string) (oldest, newest map[int32]int64, err error) {
	if newest, err = admin.ListOffsets(ctx, topic, farFuture()); err != nil {
		return nil, nil, err
	}
	oldest, err = admin.ListOffsets(ctx, topic, time.Time{})
	// What retention removes in between must not make counts negative.
	for p, offset := range oldest {
		newest[p] = max(newest[p], offset)
	}
	return oldest, newest, err
}

// farFuture is later than any message.
func farFuture() time.Time { return time.Now().AddDate(100, 0, 0) }

// Run lists topics.
func (c *topicListCmd) Run(ctx context.Context, a *app) error {
	return a.withAdmin(ctx, func(ctx context.Context, admin *robust.AdminClient) error {
		views, err := viewTopics(ctx, admin, nil)
		if err != nil {
			return err
		}
		return a.show(views, func(w io.Writer) {
			if len(views) == 0 {
				fmt.Fprintln(w, "there are no topics; robust topic create NAME makes one")
				return
			}
			row(w, "TOPIC", "PARTITIONS", "MESSAGES")
			for _, v := range views {
				row(w, v.Name, len(v.Partitions), orDash(v.Messages))
			}
		})
	})
}

type topicDescribeCmd struct {
	Names []string `arg:"" predictor:"topic" help:"Names of topics."`
}

// Run shows all about topics.
func (c *topicDescribeCmd) Run(ctx context.Context, a *app) error {
	return a.withAdmin(ctx, func(ctx context.Context, admin *robust.AdminClient) error {
		views, err := viewTopics(ctx, admin, c.Names)
		if err != nil {
			return err
		}
		return a.show(views, func(w io.Writer) {
			for i := range views {
				if i > 0 {
					fmt.Fprintln(w)
				}
				views[i].write(w)
			}
		})
	})
}

// sizeText says how much there is of a topic.
func (v *topicView) sizeText() string {
	messages := "how many messages the broker does not tell"
	if v.Messages != nil {
		messages = plural(*v.Messages, "message")
	}
	return plural(len(v.Partitions), "partition") + ", " + messages
}

// write prints all about a topic for people.
func (v *topicView) write(w io.Writer) {
	fmt.Fprintf(w, "topic %s, %s\n", v.Name, v.sizeText())
	for _, key := range slices.Sorted(maps.Keys(v.Config)) {
		fmt.Fprintf(w, "%s = %s\n", key, v.Config[key])
	}
	row(w, "PARTITION", "OLDEST", "NEWEST", "MESSAGES", "LEADER")
	for _, p := range v.Partitions {
		messages := "-"
		if p.Oldest != nil {
			messages = fmt.Sprint(*p.Newest - *p.Oldest)
		}
		row(w, p.ID, orDash(p.Oldest), orDash(p.Newest), messages, p.Leader)
	}
}

type topicDeleteCmd struct {
	Names  []string `arg:"" predictor:"topic" help:"Names of topics."`
	DryRun bool     `help:"Show what would go, and delete nothing."`
}

// Run deletes topics, all that it can.
func (c *topicDeleteCmd) Run(ctx context.Context, a *app) error {
	d := deletion{kind: "topic", dry: c.DryRun, one: (*robust.AdminClient).DeleteTopic, look: lookAtTopic}
	return d.run(ctx, a, c.Names)
}

// lookAtTopic says what goes with a topic.
func lookAtTopic(ctx context.Context, admin *robust.AdminClient, name string) (string, error) {
	views, err := viewTopics(ctx, admin, []string{name})
	if err != nil {
		return "", err
	}
	return views[0].sizeText(), nil
}
