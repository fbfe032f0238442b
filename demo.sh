#!/bin/sh
# Runs the walk-through of README.md: starts a cluster of NODES nodes, by default one, which enforces network policies
# if NETWORK_POLICY is 1, loads the four images and applies the manifests, with the components in COMPONENTS. It prints each command before it
# runs the command. A second run loads and restarts only the services that have changed.
set -eu
cd "$(dirname "$0")"

# The same flags as in settings.mk, so that the launcher and the services share compiled
# packages. With GOGC=400 the compiler collects garbage less often: the first run is
# a minute shorter. The programs run here, whatever system the user compiles for.
export CGO_ENABLED=0 GOFLAGS=-trimpath GOGC=400 GOWORK=off
unset GOOS GOARCH

cluster=${CLUSTER:-demo}
dir=.cluster/$cluster
services='go-micro-srv go-micro-web go-micro-client go-micro-config'
down='make cluster-down'
[ "$cluster" = demo ] || down="$down CLUSTER=$cluster"
launcher() { # command, arguments
	command=$1
	shift
	go run -C cluster . "$command" -name "$cluster" "$@"
}
kubectl() { "$dir/bin/kubectl" "$@"; } # always the cluster's version, not the kubectl in PATH
case $(cd / && go env GOVERSION 2>/dev/null) in # go fetches the version that go.mod names since 1.21
'' | go1.[0-9] | go1.[0-9].* | go1.1* | go1.20*)
	echo "demo: looking for Go: PATH has none, or one older than 1.21; install Go $(sed -n 's/^go \([0-9]*\.[0-9]*\).*/\1/p' go.mod) or newer, see https://go.dev/doc/install" >&2
	exit 1
	;;
esac
cache=$(go env GOCACHE)
if [ "$cache" = off ] || ! mkdir -p "$cache" 2>/dev/null || [ ! -w "$cache" ]; then
	echo "demo: writing to \"$cache\": it is impossible; set GOCACHE to a directory that you own, and if HOME is read-only also GOMODCACHE and XDG_CACHE_HOME" >&2
	exit 1
fi
title() { printf '\n== %s\n' "$*"; }
show() {
	printf '\n$ %s\n' "$*"
	"$@"
}

deployment() { # applies the Deployment of the service $1, with the variable that turns on the page of traces
	printf '\n$ kubectl set env --local -f %s POD_DEBUG_TRACE=on -o yaml | kubectl apply -f -\n' "$1/k8s/deployment.yaml"
	kubectl set env --local -f "$1/k8s/deployment.yaml" POD_DEBUG_TRACE=on -o yaml | kubectl apply -f -
}

cat <<'WELCOME'
k8s-micro: four Go-Micro services on a Kubernetes of their own.
The first run downloads Kubernetes, about 400 MB. Where it cannot, it builds Kubernetes
from Go modules, which takes 7 to 16 minutes on two cores; the lines below tell.
Every later run, in any clone, takes less than a minute.
Meanwhile: README.md explains what you will see, docs/guarantees.md what pod/ adds to go-micro.
WELCOME

# The packages of the four programs compile while the launcher downloads. When it builds,
# nice leaves the processors to Kubernetes, which takes longer. `go list -export` compiles
# like `go build`, but does not link.
work=$(mktemp -d "${GOTMPDIR:-${TMPDIR:-/tmp}}/k8s-micro-demo-XXXXXX") # go leaves its own directory behind when it is killed
log=$work/log
GOTMPDIR=$work nice go list -export -deps ./go-micro-srv ./go-micro-web ./go-micro-client ./go-micro-config >"$log" 2>&1 &
compiling=$!
end() {
	status=$?
	[ -z "$compiling" ] || kill "$compiling" 2>/dev/null || true
	rm -rf "$work" || { sleep 1 && rm -rf "$work"; } # a compiler may still be writing
	if [ $status -ne 0 ] && [ -e "$dir/ready" ]; then
		echo "demo: cluster \"$cluster\" is running: run the same command again to continue, or stop the cluster with: $down" >&2
	fi
}
trap end EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

title 'A cluster'
launcher up -nodes "${NODES:-1}" -network-policy="${NETWORK_POLICY:-0}"
export KUBECONFIG="$dir/kubeconfig" KUBECACHEDIR="$dir/kubectl-cache" # relative, because the checkout's path may contain a colon, which separates paths in KUBECONFIG

title 'Four programs, four images'
if kill -0 "$compiling" 2>/dev/null; then
	echo 'compiling the packages of the four programs: up to 2 minutes the first time'
fi
wait "$compiling" || true # make prints the error
compiling=
changed=
for s in $services; do
	{ make --no-print-directory -C "$s" load CLUSTER="$cluster" || echo 'demo: loading the image failed'; } | tee "$log"
	case $(cat "$log") in
	*'loading the image failed'*) exit 1 ;;
	*'loaded '*) changed="$changed $s" ;;
	esac
done

if [ -z "${COMPONENTS:-}" ]; then
	title 'The manifests, in the order of the README'
	show kubectl apply -f k8s/namespace.yaml
	show kubectl apply -f k8s/configmap-rbac.yaml
	show kubectl apply -f k8s/pod-rbac.yaml
	show kubectl apply -f k8s/pod-admission.yaml
fi
for s in $changed; do # the tag stays the same, so a pod uses the new image only after a restart
	case $s in
	go-micro-config) kubectl delete pod -n go-micro "$s" --ignore-not-found >/dev/null ;;
	*) kubectl get deployment -n go-micro "$s" >/dev/null 2>&1 && kubectl rollout restart -n go-micro "deployment/$s" ;;
	esac || true
done
if [ -n "${COMPONENTS:-}" ]; then
	case " $COMPONENTS " in *' traces '*) ;; *) COMPONENTS="$COMPONENTS traces" ;; esac # the last step names the page of traces
	title "The manifests, with the components $COMPONENTS"
	printf '\n$ make deploy COMPONENTS="%s"\n' "$COMPONENTS"
	PATH=$dir/bin:$PATH make --no-print-directory deploy COMPONENTS="$COMPONENTS"
else
	deployment go-micro-srv
	show kubectl apply -f go-micro-srv/k8s/service.yaml
	show kubectl apply -f go-micro-srv/k8s/pdb.yaml
	deployment go-micro-web
	show kubectl apply -f go-micro-web/k8s/service.yaml
	show kubectl apply -f go-micro-web/k8s/pdb.yaml
	deployment go-micro-client
	show kubectl apply -f go-micro-config/k8s/configmap.yaml
	show kubectl apply -f go-micro-config/k8s/pod.yaml
fi

title 'The state of the pods'
for s in go-micro-srv go-micro-web go-micro-client; do
	kubectl rollout status -n go-micro "deployment/$s" --timeout=2m
done
kubectl wait -n go-micro pod/go-micro-config --for=jsonpath='{.status.phase}'=Succeeded --timeout=2m
show kubectl get pods -n go-micro -o wide

pod() { # prints the name of a pod of the service $1 that is not terminating
	kubectl get pods -n go-micro -l "app=$1" --field-selector=status.phase=Running \
		-o go-template='{{range .items}}{{if not .metadata.deletionTimestamp}}{{.metadata.name}}{{"\n"}}{{end}}{{end}}' | sed -n 1p # unlike head, sed reads all of kubectl's output
}
srv=$(pod go-micro-srv)
client=$(pod go-micro-client)

title 'The registration: labels and an annotation that the pod set on itself'
printf '\n$ kubectl describe pod %s -n go-micro\n···\n' "$srv"
kubectl describe pod "$srv" -n go-micro | sed -n '/^Labels:/,/^Status:/{/^Status:/d;p}'
echo '···'
show kubectl logs "$srv" -n go-micro

title 'The client finds a server by its name and calls it every 10 seconds'
printf '\n$ kubectl logs %s -n go-micro\n' "$client"
i=0
while :; do
	log_of_client=$(kubectl logs "$client" -n go-micro)
	case $log_of_client in *'Server Hello XXX!'*) break ;; esac
	i=$((i + 1))
	if [ $i = 60 ]; then
		printf "%s\ndemo: waiting for 'Server Hello XXX!' in the log of pod %s: not within a minute\n" "$log_of_client" "$client" >&2
		exit 1
	fi
	sleep 1
done
printf '%s\n' "${log_of_client%%Server Hello XXX!*}Server Hello XXX!"

title 'The web service answers with the name of its pod: its Service selects one of two'
for _ in 1 2 3 4; do
	show kubectl get --raw /api/v1/namespaces/go-micro/services/go-micro-web:9200/proxy/
	echo
done

title 'The environment and the ConfigMap, as one map'
show kubectl logs go-micro-config -n go-micro

title 'The same, checked in one command: make verify-deploy'
echo
go run ./test/verify -kubectl "$dir/bin/kubectl"

page=$(launcher forward go-micro/go-micro-web:9200)
title 'Next steps'
echo
launcher status | sed -n '/^  export /p'
cat <<MORE
  kubectl get pods -n go-micro --show-labels

See the registry in a browser, as it changes: http://$page/registry/
  kubectl scale deployment go-micro-srv -n go-micro --replicas=5
  kubectl rollout restart deployment go-micro-srv -n go-micro
The traces of the last calls: http://$page/registry/traces

Stop the cluster and remove everything it created: $down
MORE
