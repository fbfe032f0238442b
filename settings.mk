# Included by Makefile and service.mk: the settings that a caller may give, and the flags of every go command.

CLUSTER  ?= demo
NODES    ?= 1
NETWORK_POLICY ?= 0
REGISTRY ?= 846602483
TAG      ?= kubernetes

# Shells, YAML files and make itself read the values of these variables. Before make uses
# a value, it stops with an error if the value does not match the variable's pattern. The
# error does not show a value with an @, which may contain a password.
component := [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*
label     := [A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?
host      := $(label)(\.$(label))*(:[0-9]+)?
tag       := [A-Za-z0-9_][A-Za-z0-9_.-]{0,127}
REGISTRY.pattern   := $(host)|($(host)/)?$(component)(/$(component))*
REGISTRY.example   := docker.io/you or localhost:5000
TAG.pattern        := $(tag)
TAG.example        := v1.2
IMAGE.pattern      := ($(host)/)?$(component)(/$(component))*(:$(tag))?
IMAGE.example      := docker.io/you/go-micro-srv:v1.2
CLUSTER.pattern    := [A-Za-z0-9][A-Za-z0-9_-]{0,62}
CLUSTER.example    := demo
NODES.pattern      := [1-9]
NODES.example      := 3
NETWORK_POLICY.pattern := [01]
NETWORK_POLICY.example := 1
COMPONENTS.pattern := ($(component)( +$(component))*)?
COMPONENTS.example := network-policy
FAULT.pattern      := ([a-z]+(-[a-z]+)*)?
FAULT.example      := api-frozen
K8S_MICRO_SOURCE.pattern := (build|download|https?://[][A-Za-z0-9._~%:@/-]+)?
K8S_MICRO_SOURCE.example := build, download or https://mirror.example/releases
define newline


endef
quote   = '$(subst ','\'',$(1))'
refuse  = $(error reading $(1)="$(if $(findstring @,$(value $(1))),···,$(value $(1)))": it is not valid; write it as $($(1).example))
matches = $(shell printf '%s\n' $(call quote,$($(1))) | LC_ALL=C grep -Exq -e $(call quote,$($(1).pattern)) && echo yes)
settings := REGISTRY TAG IMAGE CLUSTER NODES NETWORK_POLICY COMPONENTS FAULT K8S_MICRO_SOURCE
# First refuse values with a $ or a newline, because make would expand them; only defaults
# in a Makefile may refer to other variables. Then refuse values that do not match.
$(foreach v,$(settings),$(if $(filter undefined file,$(origin $(v))),,\
	$(if $(findstring $$,$(value $(v)))$(findstring $(newline),$(value $(v))),$(call refuse,$(v)))))
$(foreach v,$(settings),$(if $(filter undefined,$(origin $(v))),,\
	$(if $(call matches,$(v)),,$(call refuse,$(v)))))

# One set of flags for every go command, so that all of them share compiled packages. A
# workspace in a directory above, such as the user's own, has no effect.
export GOWORK      := off
export GOFLAGS     := $(strip $(filter-out -trimpath,$(GOFLAGS)) -trimpath)
export CGO_ENABLED := 0
