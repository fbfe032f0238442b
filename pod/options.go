package pod

import (
	"context"

	"github.com/micro/go-micro/v2/registry"
)

// optionKey is the key of an option of this package in the context of a registry's options.
type optionKey int

const (
	anyAddressKey optionKey = iota
	eventsKey
	subsetKey
	throughAPIServerKey
	alsoKey
	credentialsKey
	ignoreZonesKey
)

// setOption returns an option that sets a value.
func setOption(key optionKey, value any) registry.Option {
	return func(o *registry.Options) {
		if o.Context == nil {
			o.Context = context.Background()
		}
		o.Context = context.WithValue(o.Context, key, value)
	}
}

// optionOf returns the value of an option, and whether it is set.
func optionOf[T any](o registry.Options, key optionKey) (value T, ok bool) {
	if o.Context == nil {
		return value, false
	}
	value, ok = o.Context.Value(key).(T)
	return value, ok
}
