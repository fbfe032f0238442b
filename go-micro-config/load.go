package main

import (
	"errors"
	"time"

	"github.com/micro/go-micro/v2/config"
	"github.com/micro/go-micro/v2/config/source"
)

// load merges sources into cfg. It adds the time limit that the plugin's requests lack, and what the plugin lacks outside of a pod.
func load(cfg config.Config, sources ...source.Source) error {
	for i, s := range sources {
		sources[i] = outside{s}
	}
	loaded := make(chan error, 1)
	go func() { loaded <- cfg.Load(sources...) }()
	select {
	case err := <-loaded:
		return err
	case <-time.After(5 * time.Second):
		return errors.New("the API server has not answered for 5 seconds")
	}
}
