//go:build !unix

package main

// selfUsage knows nothing here.
func selfUsage() (usage, error) { return usage{}, nil }
