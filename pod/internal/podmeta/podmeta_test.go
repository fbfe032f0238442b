package podmeta

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestLabelName(t *testing.T) {
	for service, want := range map[string]string{
		"greeter": "greeter", "go.micro.srv-1_A": "go.micro.srv-1_A", "a/b": "a_b", "a:b": "a_b", "ü": "__", "": "",
		"`az{": "_az_", "@AZ[": "_AZ_", "/09:": "_09_", // the bytes beside the ranges that stay
	} {
		if got := LabelName(service); got != want {
			t.Errorf("LabelName(%q) is %q, want %q", service, got, want)
		}
	}
}

func text(s string) *string { return &s }

func TestDiff(t *testing.T) {
	observed := Metadata{Labels: map[string]*string{"same": text("1"), "other": text("1"), "extra": text("1"), "unwanted": text("1"), "gone": nil},
		Annotations: map[string]*string{"same": text("1")}}
	for _, c := range []struct {
		what           string
		desired        Metadata
		labels         map[string]string // "" stands for nil
		annotations    []string
		empty, removes bool
	}{
		{"nothing is desired", Metadata{}, nil, nil, true, true},
		{"equal values", Metadata{Labels: map[string]*string{"same": text("1")}, Annotations: map[string]*string{"same": text("1")}}, nil, nil, true, true},
		{"another value", Metadata{Labels: map[string]*string{"same": text("1"), "other": text("2")}}, map[string]string{"other": "2"}, nil, false, false},
		{"a new value", Metadata{Labels: map[string]*string{"new": text("2")}}, map[string]string{"new": "2"}, nil, false, false},
		{"a value to remove", Metadata{Labels: map[string]*string{"unwanted": nil}}, map[string]string{"unwanted": ""}, nil, false, true},
		{"a value that is absent", Metadata{Labels: map[string]*string{"gone": nil, "unknown": nil}}, nil, nil, true, true},
		{"an annotation alone", Metadata{Annotations: map[string]*string{"new": text("2")}}, nil, []string{"new"}, false, false},
		{"an annotation to remove", Metadata{Annotations: map[string]*string{"same": nil}}, nil, []string{"same"}, false, true},
		{"a label to remove and an annotation to write", Metadata{Labels: map[string]*string{"unwanted": nil}, Annotations: map[string]*string{"new": text("2")}},
			map[string]string{"unwanted": ""}, []string{"new"}, false, false},
	} {
		d := observed.Diff(c.desired)
		labels := map[string]string{}
		for k, v := range d.Labels {
			labels[k] = ""
			if v != nil {
				labels[k] = *v
			}
		}
		if !maps.Equal(labels, c.labels) || !slices.Equal(slices.Sorted(maps.Keys(d.Annotations)), c.annotations) {
			t.Errorf("%s: the diff is %v %v, want %v %v", c.what, labels, d.Annotations, c.labels, c.annotations)
		}
		if d.Empty() != c.empty || d.OnlyRemoves() != c.removes {
			t.Errorf("%s: Empty is %v and OnlyRemoves %v", c.what, d.Empty(), d.OnlyRemoves())
		}
	}
}

func TestContradicts(t *testing.T) {
	m := Metadata{Labels: map[string]*string{"a": text("1"), "gone": nil}, Annotations: map[string]*string{"b": text("1")}}
	for _, c := range []struct {
		desired Metadata
		want    bool
	}{
		{Metadata{}, false},
		{m, false},
		{Metadata{Labels: map[string]*string{"b": text("2")}, Annotations: map[string]*string{"a": nil}}, false}, // other keys
		{Metadata{Labels: map[string]*string{"a": text("2")}}, true},
		{Metadata{Labels: map[string]*string{"a": nil}}, true},
		{Metadata{Labels: map[string]*string{"gone": text("1")}}, true},
		{Metadata{Annotations: map[string]*string{"b": nil}}, true},
	} {
		if got := m.Contradicts(c.desired); got != c.want {
			t.Errorf("%+v contradicts %+v: %v", m, c.desired, got)
		}
		if all := m.With(c.desired); all.Contradicts(c.desired) || all.Contradicts(m) != c.want {
			t.Errorf("%+v with %+v: %+v", m, c.desired, all)
		}
	}
}

func TestOfAndPatch(t *testing.T) {
	m := Of(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "1", Labels: map[string]string{"a": "1", "b": ""}, Annotations: map[string]string{"c": "3"}}})
	var p Patch
	p.Metadata.UID, p.Metadata.Metadata = "1", m
	m.Labels["d"] = nil
	b, err := json.Marshal(p)
	if want := `{"metadata":{"uid":"1","labels":{"a":"1","b":"","d":null},"annotations":{"c":"3"}}}`; err != nil || string(b) != want {
		t.Errorf("the patch is %s, %v; want %s", b, err, want)
	}
}
