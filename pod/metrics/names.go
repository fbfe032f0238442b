package metrics

// The names of labels. Those of OpenTelemetry are attributes of its RPC and HTTP conventions with underscores for
// dots. The RPC conventions are a release candidate, and rpc.response.status_code, the name of v1.44.0 and of otelgrpc
// 0.72, is to become rpc.status_code: it stands here once.
//
// No label is called service, pod or instance: Prometheus adds those of the scraped process, and would rename
// ours to exported_pod.
const (
	labelRPCMethod  = "rpc_method"               // Greeter/Hello in a server, Greeter.Hello in a client
	labelRPCCode    = "rpc_response_status_code" // OK, NOT_FOUND, ...
	labelServer     = "server_address"           // the called service; OpenTelemetry means a group of instances, too
	labelServerPod  = "server_pod"               // the called pod
	labelServerZone = "server_zone"              // same or other, as the zone of this process; a name of each zone would not be bounded
	labelService    = "service_name"             // a service of this process
	labelHTTPMethod = "http_request_method"
	labelHTTPRoute  = "http_route"
	labelHTTPStatus = "http_response_status_code"
	labelOutcome    = "outcome"
	labelCause      = "cause"
	labelReason     = "reason"
	labelState      = "state"
	labelOperation  = "operation"
	labelConfigMap  = "config_map"
)

// other stands for values that a caller has invented, and for those over a limit (OpenTelemetry's _OTHER).
const other = "_OTHER"

// buckets are those of OpenTelemetry's durations, with three below for calls within a cluster, which take less than a millisecond.
var buckets = [...]float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}

// codeNames are gRPC's codes as OpenTelemetry writes them.
var codeNames = [...]string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS", "PERMISSION_DENIED",
	"RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}
