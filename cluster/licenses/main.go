// Licenses adds the licences of modules to their components in an SBOM (CycloneDX, JSON). It
// recognizes them in the texts that `make build` has collected for the image:
//
//	go run -C cluster ./licenses /PATH/licenses.txt /PATH/sbom.cdx.json
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "licenses: want the file of texts and the SBOM")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintf(os.Stderr, "licenses: adding the licences to %q: %v\n", os.Args[2], err)
		os.Exit(1)
	}
}

func run(texts, sbom string) error {
	text, err := os.ReadFile(texts)
	if err != nil {
		return err
	}
	b, err := os.ReadFile(sbom)
	if err != nil {
		return err
	}
	if b, err = add(string(text), b); err != nil {
		return err
	}
	return os.WriteFile(sbom, b, 0o644)
}

// license is the license of a component in CycloneDX: an SPDX identifier, or else a text.
type license struct {
	ID   string `json:"id,omitempty"`
	Name string `json:"name,omitempty"`
	Text *text  `json:"text,omitempty"`
}

type text struct {
	Content string `json:"content"`
}

// add returns the SBOM with the licences in texts, where the line "==== MODULE VERSION, FILE"
// precedes each file.
func add(texts string, sbom []byte) ([]byte, error) {
	var bom map[string]any
	if err := json.Unmarshal(sbom, &bom); err != nil {
		return nil, err
	}
	found := map[string][]map[string]license{} // by module and version
	for _, section := range strings.Split("\n"+texts, "\n==== ")[1:] {
		title, content, _ := strings.Cut(section, "\n")
		module, file, _ := strings.Cut(title, ", ")
		if strings.HasPrefix(file, "NOTICE") { // accompanies a licence
			continue
		}
		for _, l := range recognize(file, content) {
			found[module] = append(found[module], map[string]license{"license": l})
		}
	}
	all, _ := bom["components"].([]any)
	if metadata, ok := bom["metadata"].(map[string]any); ok {
		all = append(all, metadata["component"])
	}
	for _, c := range all {
		component, ok := c.(map[string]any)
		if !ok {
			continue
		}
		if licenses := found[fmt.Sprintf("%v %v", component["name"], component["version"])]; licenses != nil {
			component["licenses"] = licenses
		}
	}
	b, err := json.MarshalIndent(bom, "", "  ")
	return append(b, '\n'), err
}

// recognize returns the licences in a file: the SPDX identifiers of those that Go modules
// usually have, or the text itself.
func recognize(file, content string) (all []license) {
	words := strings.Join(strings.Fields(content), " ")
	has := func(text string) bool { return strings.Contains(words, text) }
	redistribution := has("Redistribution and use in source and binary forms")
	for _, l := range []struct {
		id string
		is bool
	}{
		{"Apache-2.0", has("Apache License") && has("Version 2.0")},
		{"BSD-2-Clause", redistribution && !has("Neither the name") && !has("names of its contributors")},
		{"BSD-3-Clause", redistribution && (has("Neither the name") || has("names of its contributors"))},
		{"ISC", has("Permission to use, copy, modify, and")},
		{"MIT", has("Permission is hereby granted, free of charge")},
		{"MPL-2.0", has("Mozilla Public License") && has("2.0")},
	} {
		if l.is {
			all = append(all, license{ID: l.id})
		}
	}
	if all == nil {
		all = []license{{Name: file, Text: &text{content}}}
	}
	return all
}
