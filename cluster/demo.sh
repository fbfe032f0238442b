#!/usr/bin/env bash
# The walk-through of README.md, from nothing to the four services talking. It
# shows each command before it runs it; run again it only does what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

# Alike for launcher and services, so that they share what they have in common;
# and the compiler collects garbage less often: the first run is a minute shorter.
export CGO_ENABLED=0 GOFLAGS=-trimpath GOGC=400

cluster=${CLUSTER:-demo}
services='go-micro-srv go-micro-web go-micro-client go-micro-config'
cube() { go run -C cluster . "$1" -name "$cluster" "${@:2}"; }
title() { printf '\n== %s\n' "$*"; }
show() {
	printf '\n$ %s\n' "$*"
	"$@"
}

cat <<'WELCOME'
k8s-micro: four Go-Micro services on a Kubernetes of their own.
The first run downloads and builds Kubernetes itself: up to 10 minutes on two cores.
Every later one, in any clone, takes under 40 seconds.
WELCOME

title 'A cluster'
cube up
export KUBECONFIG="$PWD/.cluster/$cluster/kubeconfig"
command -v kubectl >/dev/null || export PATH="$PWD/.cluster/$cluster/bin:$PATH"

title 'Four programs, four images'
stale=()
for s in $services; do
	out=$(make --no-print-directory -C "$s" load CLUSTER="$cluster" | tee >(cat >&2))
	if [[ $out == *'loaded '* ]]; then stale+=("$s"); fi
done

title 'The manifests, in the order of the README'
show kubectl apply -f k8s/namespace.yaml
show kubectl apply -f k8s/configmap-rbac.yaml
show kubectl apply -f k8s/pod-rbac.yaml
show kubectl apply -f k8s/pod-policy.yaml
for s in "${stale[@]}"; do # the tag is the same, so a new image needs a new pod
	case $s in
	go-micro-config) kubectl delete pod -n go-micro "$s" --ignore-not-found >/dev/null ;;
	*) kubectl get deployment -n go-micro "$s" >/dev/null 2>&1 && kubectl rollout restart -n go-micro "deployment/$s" ;;
	esac || true
done
show kubectl apply -f go-micro-srv/k8s/deployment.yaml
show kubectl apply -f go-micro-srv/k8s/service.yaml
show kubectl apply -f go-micro-srv/k8s/pdb.yaml
show kubectl apply -f go-micro-web/k8s/deployment.yaml
show kubectl apply -f go-micro-web/k8s/service.yaml
show kubectl apply -f go-micro-web/k8s/pdb.yaml
show kubectl apply -f go-micro-client/k8s/deployment.yaml
show kubectl apply -f go-micro-config/k8s/configmap.yaml
show kubectl apply -f go-micro-config/k8s/pod.yaml

title 'What the API server says'
for s in go-micro-srv go-micro-web go-micro-client; do
	kubectl rollout status -n go-micro "deployment/$s" --timeout=2m
done
kubectl wait -n go-micro pod/go-micro-config --for=jsonpath='{.status.phase}'=Succeeded --timeout=2m
show kubectl get pods -n go-micro -o wide

pod() { # the name of a pod of a service that is not on its way out
	kubectl get pods -n go-micro -l "app=$1" --field-selector=status.phase=Running \
		-o go-template='{{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}}{{"\n"}}{{end}}{{end}}' | sed -n 1p # reads to the end: kubectl is not cut off
}
srv=$(pod go-micro-srv)
client=$(pod go-micro-client)

title 'The registration: labels and an annotation that the pod put on itself'
printf '\n$ kubectl describe pod %s -n go-micro\n···\n' "$srv"
kubectl describe pod "$srv" -n go-micro | sed -n '/^Labels:/,/^Status:/{/^Status:/d;p}'
echo '···'
show kubectl logs "$srv" -n go-micro

title 'The client finds a server by its name and calls it every 10 seconds'
printf '\n$ kubectl logs %s -n go-micro\n' "$client"
for ((i = 0; ; i++)); do
	log=$(kubectl logs "$client" -n go-micro)
	if [[ $log == *'Server Hello XXX!'* ]]; then break; fi
	if ((i == 60)); then
		printf "%s\ndemo: no 'Server Hello XXX!' within a minute\n" "$log" >&2
		exit 1
	fi
	sleep 1
done
printf '%s\n' "${log%%Server Hello XXX!*}Server Hello XXX!"

title 'The web service answers the name of its pod: through its Service, one or the other'
for _ in 1 2 3 4; do
	show kubectl get --raw /api/v1/namespaces/go-micro/services/go-micro-web:9200/proxy/
	echo
done

title 'The environment and the ConfigMap, as one map'
show kubectl logs go-micro-config -n go-micro

page=$(cube forward go-micro/go-micro-web:9200)
title 'Look further'
printf '\n  export KUBECONFIG=%s\n' "$KUBECONFIG"
if [[ $(command -v kubectl) == "$PWD/.cluster/"* ]]; then
	# shellcheck disable=SC2016 # for the reader's shell
	printf '  export PATH=%s:$PATH   # kubectl\n' "$PWD/.cluster/$cluster/bin"
fi
cat <<MORE
  kubectl get pods -n go-micro --show-labels

See the registry in a browser, as it changes: http://$page/registry/
  kubectl scale deployment go-micro-srv -n go-micro --replicas=5
  kubectl rollout restart deployment go-micro-srv -n go-micro

Stop it, and leave nothing: make cluster-down
MORE
