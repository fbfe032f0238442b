package main

import (
	"errors"
	"io/fs"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"
)

// remedy says what to do when reading the ConfigMap ended with err.
func remedy(err error) string {
	switch {
	case apierrors.IsNotFound(err):
		return "go-micro-config/k8s/configmap.yaml creates it"
	case apierrors.IsForbidden(err):
		return "k8s/configmap-rbac.yaml grants it to service account micro-config"
	case errors.Is(err, rest.ErrNotInCluster), errors.Is(err, fs.ErrNotExist): // no service account volume
		return "run it in a pod with a service account, as go-micro-config/k8s/pod.yaml does"
	default:
		return "is the API server up? go-micro-config/k8s/configmap.yaml creates the map, k8s/configmap-rbac.yaml grants access"
	}
}
