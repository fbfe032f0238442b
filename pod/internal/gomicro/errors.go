package gomicro

import (
	stderrors "errors"

	"github.com/micro/go-micro/v2/client/selector"
	"github.com/micro/go-micro/v2/errors"
)

// SelectError returns the error of a selector as go-micro's client does.
func SelectError(service string, err error) error {
	if stderrors.Is(err, selector.ErrNotFound) {
		return errors.InternalServerError(ClientID, "service %s: %s", service, err.Error())
	}
	return errors.InternalServerError(ClientID, "error selecting %s node: %s", service, err.Error())
}
