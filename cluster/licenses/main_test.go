package main

import (
	"encoding/json"
	"strings"
	"testing"
)

// Each component with a text gets the licences in it; others, and everything else in the SBOM, stay as they are.
func TestAdd(t *testing.T) {
	const texts = `
==== example.com/a v1.0.0, LICENSE

Permission is hereby granted, free of charge, to any person

==== example.com/a v1.0.0, NOTICE

Apache License, Version 2.0
==== example.com/b v2.0.0, COPYING

Do what you want.
==== example.com/main (devel), LICENSE
                                 Apache License
                           Version 2.0, January 2004
`
	const sbom = `{"bomFormat": "CycloneDX", "metadata": {"component": {"name": "example.com/main", "version": "(devel)"}},
		"components": [{"name": "example.com/a", "version": "v1.0.0", "purl": "p"}, {"name": "example.com/b", "version": "v2.0.0"}, {"name": "example.com/c", "version": "v1.0.0"}]}`
	got, err := add(texts, []byte(sbom))
	if err != nil {
		t.Fatal(err)
	}
	var want any
	if err := json.Unmarshal([]byte(`{"bomFormat": "CycloneDX", "metadata": {"component": {"name": "example.com/main", "version": "(devel)", "licenses": [{"license": {"id": "Apache-2.0"}}]}},
		"components": [{"name": "example.com/a", "version": "v1.0.0", "purl": "p", "licenses": [{"license": {"id": "MIT"}}]},
			{"name": "example.com/b", "version": "v2.0.0", "licenses": [{"license": {"name": "COPYING", "text": {"content": "\nDo what you want."}}}]},
			{"name": "example.com/c", "version": "v1.0.0"}]}`), &want); err != nil {
		t.Fatal(err)
	}
	text, err := json.MarshalIndent(want, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(text)+"\n" {
		t.Errorf("got %s, want %s", got, text)
	}
	if _, err := add(texts, []byte("no JSON")); err == nil {
		t.Error("an SBOM that is no JSON is accepted")
	}
}

func TestRecognize(t *testing.T) {
	for text, want := range map[string]string{
		"Redistribution and use in source and binary forms ... Neither the name of Google":    "BSD-3-Clause",
		"Redistribution and use in source\nand binary forms, with or without modification":    "BSD-2-Clause",
		"Permission to use, copy, modify, and distribute this software for any purpose":       "ISC",
		"Mozilla Public License, version 2.0":                                                 "MPL-2.0",
		"Apache License Version 2.0 ... Permission is hereby granted, free of charge, to any": "Apache-2.0 MIT",
	} {
		var ids []string
		for _, l := range recognize("LICENSE", text) {
			ids = append(ids, l.ID)
		}
		if got := strings.Join(ids, " "); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}
