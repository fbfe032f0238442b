package pod

import "github.com/jiangjiancc/go_micro_k8s/pod/internal/gomicro"

func init() { gomicro.UseTracer() }
