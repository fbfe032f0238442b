package mtls

import (
	"errors"
	"fmt"
	"strings"
)

// ID is a SPIFFE ID, the name of a workload in a trust domain.
// https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md
type ID struct {
	URI         string // such as spiffe://cluster.local/ns/go-micro/sa/go-micro-client
	TrustDomain string // cluster.local
	Namespace   string // go-micro; "" unless the path is /ns/NAMESPACE/sa/ACCOUNT
	Account     string // go-micro-client; "" unless the path is /ns/NAMESPACE/sa/ACCOUNT
}

const (
	scheme       = "spiffe://"
	maxIDLength  = 2048 // SPIFFE-ID, 2.3
	maxTrustName = 255  // SPIFFE-ID, 2.1
)

// ParseID parses a SPIFFE ID. It accepts what the standard accepts and nothing that would have to be normalized, so that
// two IDs are equal only if their texts are.
func ParseID(uri string) (ID, error) {
	invalid := func(why string) (ID, error) { return ID{}, fmt.Errorf("%.200q is no SPIFFE ID: %s", uri, why) }
	rest, ok := strings.CutPrefix(uri, scheme)
	if !ok || len(uri) > maxIDLength {
		return invalid("it must begin with " + scheme + " and have at most 2048 bytes")
	}
	domain, path, hasPath := strings.Cut(rest, "/")
	if domain == "" || len(domain) > maxTrustName || strings.ContainsFunc(domain, func(r rune) bool { return !isLower(r) && !isDigit(r) && !strings.ContainsRune("-._", r) }) {
		return invalid("a trust domain has 1 to 255 lower-case letters, digits, dots, dashes and underscores")
	}
	id := ID{URI: uri, TrustDomain: domain}
	if !hasPath {
		return id, nil
	}
	segments := strings.Split(path, "/")
	for _, s := range segments {
		if s == "" || s == "." || s == ".." || strings.ContainsFunc(s, func(r rune) bool { return !isLower(r) && !isUpper(r) && !isDigit(r) && !strings.ContainsRune("-._", r) }) {
			return invalid("a segment of the path has letters, digits, dots, dashes and underscores")
		}
	}
	if len(segments) == 4 && segments[0] == "ns" && segments[2] == "sa" {
		id.Namespace, id.Account = segments[1], segments[3]
	}
	return id, nil
}

func isLower(r rune) bool { return 'a' <= r && r <= 'z' }
func isUpper(r rune) bool { return 'A' <= r && r <= 'Z' }
func isDigit(r rune) bool { return '0' <= r && r <= '9' }

// of returns the ID of an account of a namespace in the same trust domain.
func (id ID) of(namespace, account string) string {
	return scheme + id.TrustDomain + "/ns/" + namespace + "/sa/" + account
}

// callers are the permitted callers of a service.
type callers struct {
	own        ID              // of the service
	listed     map[string]bool // IDs; nil without a list, which permits every account of the own namespace
	unreadable []string        // why lines of the list are skipped
}

// parseCallers reads a list of callers: one a line, as ACCOUNT, NAMESPACE/ACCOUNT or a whole SPIFFE ID. A # begins a comment.
func parseCallers(own ID, text []byte) callers {
	c := callers{own: own, listed: map[string]bool{}}
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		line, _, _ = strings.Cut(line, "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		id, err := own.caller(line)
		if err != nil {
			c.unreadable = append(c.unreadable, fmt.Sprintf("line %d: %v", number, err))
			continue
		}
		c.listed[id.URI] = true
	}
	return c
}

// caller returns the ID that a line of a list of callers means.
func (id ID) caller(line string) (ID, error) {
	if !strings.Contains(line, "://") {
		namespace, account, ok := strings.Cut(line, "/")
		if !ok {
			namespace, account = id.Namespace, line
		}
		line = id.of(namespace, account)
		if c, err := ParseID(line); err != nil || c.Account != account || c.Namespace != namespace {
			return ID{}, errors.New("it is neither ACCOUNT nor NAMESPACE/ACCOUNT nor " + scheme + "TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT")
		}
	}
	c, err := ParseID(line)
	if err == nil && c.TrustDomain != id.TrustDomain {
		err = fmt.Errorf("%s is of another trust domain than %s", line, id.TrustDomain)
	}
	return c, err
}

// permits reports whether an ID of the own trust domain may call the service.
func (c callers) permits(id ID) bool {
	if c.listed == nil {
		return id.Namespace == c.own.Namespace && id.Account != ""
	}
	return c.listed[id.URI]
}
