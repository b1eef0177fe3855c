module github.com/aminofox/robust-go-sdk

go 1.25

require (
	github.com/google/uuid v1.6.0
	github.com/stretchr/testify v1.12.1
)

require (
	github.com/lmittmann/tint v1.2.1 // indirect
	go.yaml.in/yaml/v3 v3.0.5 // indirect
)
