# Included by every Makefile of the project.

# One set of flags for every go command, so that all of them share compiled packages.
export GOFLAGS     := $(strip $(filter-out -trimpath,$(GOFLAGS)) -trimpath)
export CGO_ENABLED := 0
