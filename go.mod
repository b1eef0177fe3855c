module github.com/aminofox/robust-go-sdk

go 1.25

require (
	github.com/google/uuid v1.6.0 // indirect
	github.com/lmittmann/tint v1.2.1 // indirect
	github.com/stretchr/testify v1.12.1 // indirect
)
