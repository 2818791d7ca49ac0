package pgbouncer

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
)

// Process is what PgBouncer's configuration says of the process, which a pitr.yaml does not.
type Process struct {
	LogFile string
	PIDFile string
	User    string // to change to
	Verbose int
}

// Translation is PgBouncer's configuration in pitr's words.
type Translation struct {
	YAML    string   // a pitr.yaml
	Notes   []string // of settings that have no meaning here, or another one: a line each, for the log
	Process Process
}

// ErrUnknown says that there is no such setting: an error in PgBouncer, too.
var ErrUnknown = errors.New("unknown parameter")

// translator collects what the entries say.
type translator struct {
	values    map[string]value            // by our key
	objects   map[string]map[string]value // databases, users and peers: by "databases/name", their settings
	order     []string                    // of objects
	notes     []string
	process   Process
	addresses string
	port      string
}

// value is how a value is written, and what is said beside it.
type value struct{ text, comment string }

// PgBouncer's defaults where ours are others: SHOW CONFIG of 1.26 without a configuration.
var defaults = map[string]string{
	"pooler.pool_mode":          `"session"`,
	"pooler.max_client_conn":    "100",
	"pooler.auth.type":          `"md5"`,
	"pooler.server_tls_sslmode": `"prefer"`,
	"pooler.unix_socket_dir":    `"/tmp"`,
	"pooler.log_connections":    `"on"`,
	"pooler.log_disconnections": `"on"`,
	"pooler.tcp_keepidle":       "0s",
	"pooler.tcp_keepintvl":      "0s",
	"pooler.tcp_keepcnt":        "0",
}

// Translate reads a configuration file of PgBouncer, and those that it includes. Every setting is taken over, or named in the notes with the reason why it has no
// meaning here; one that PgBouncer does not know is an error, with its place.
func Translate(path string) (*Translation, error) {
	entries, err := Read(path)
	if err != nil {
		return nil, err
	}
	t := &translator{values: map[string]value{}, objects: map[string]map[string]value{}, port: "6432"}
	for key, text := range defaults {
		t.values[key] = value{text, "PgBouncer's default"}
	}
	var errs []error
	for _, e := range entries {
		if err := t.take(e); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", e.place(), err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if err := t.listen(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &Translation{YAML: t.yaml(path), Notes: t.notes, Process: t.process}, nil
}

func (t *translator) take(e Entry) error {
	switch e.Section {
	case sectionDatabases:
		return t.object(e, databaseSettings)
	case sectionUsers:
		return t.object(e, userSettings)
	case sectionPeers:
		return t.object(e, peerSettings)
	}
	return t.main(e)
}

// main takes a setting of [pgbouncer].
func (t *translator) main(e Entry) error {
	switch e.Key {
	case "listen_addr":
		t.addresses = e.Value
		return nil
	case "listen_port":
		t.port = e.Value
		_, err := number(e.Value)
		return err
	case "logfile":
		t.process.LogFile = e.Value
		return nil
	case "pidfile":
		t.process.PIDFile = e.Value
		return nil
	case "user":
		t.process.User = e.Value
		return nil
	case "job_name":
		return nil
	case "verbose":
		n, err := strconv.Atoi(e.Value)
		t.process.Verbose = n
		return err
	}
	s, known := settings[e.Key]
	if !known {
		return fmt.Errorf("%w: pgbouncer/%s", ErrUnknown, e.Key)
	}
	if s.key == "" {
		t.note(e, s.note)
		return nil
	}
	text, err := s.kind(e.Value)
	if err != nil {
		return fmt.Errorf("%s: %w", e.Key, err)
	}
	t.values[s.key] = value{text, t.comment(e, s)}
	return nil
}

// comment says where a value comes from when that is not plain from its name.
func (t *translator) comment(e Entry, s setting) string {
	if s.note != "" {
		t.note(e, s.note)
		return e.Key + ": " + s.note
	}
	if ours := s.key[strings.LastIndex(s.key, ".")+1:]; ours != e.Key {
		return e.Key
	}
	return ""
}

func (t *translator) note(e Entry, text string) {
	t.notes = append(t.notes, fmt.Sprintf("%s: %s: %s", e.place(), e.Key, text))
}

// object takes a line of a section whose keys are names of the operator's.
func (t *translator) object(e Entry, known map[string]setting) error {
	pairs, err := parsePairs(e.Value)
	if err != nil {
		return fmt.Errorf("%s: %w", e.Key, err)
	}
	name := e.Section + "/" + e.Key
	if _, again := t.objects[name]; !again {
		t.order = append(t.order, name)
	}
	o := map[string]value{}
	for _, p := range pairs {
		s, found := known[p.Key]
		if !found {
			return fmt.Errorf("%w: %s/%s: %s", ErrUnknown, e.Section, e.Key, p.Key)
		}
		text, err := s.kind(p.Value)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", e.Key, p.Key, err)
		}
		o[s.key] = value{text, ""}
	}
	if e.Section == sectionDatabases {
		t.complete(o)
	}
	t.objects[name] = o
	return nil
}

// complete adds what PgBouncer takes for granted of a database; of the host it knows only at the end, see yaml.
func (t *translator) complete(database map[string]value) {
	if _, said := database["port"]; !said {
		database["port"] = value{`"5432"`, ""}
	}
}

// listen makes addresses of listen_addr and listen_port.
func (t *translator) listen() error {
	var list []string
	for address := range strings.SplitSeq(t.addresses, ",") {
		switch address = strings.TrimSpace(address); address {
		case "":
			continue
		case "*":
			address = ""
		}
		list = append(list, strconv.Quote(net.JoinHostPort(address, t.port)))
	}
	t.values["pooler.listen_port"] = value{t.port, ""}
	t.values["pooler.listen"] = value{"[" + strings.Join(list, ", ") + "]", "listen_addr and listen_port"}
	return nil
}

// yaml writes what was collected, in the order of the names.
func (t *translator) yaml(path string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# From %s.\n", path)
	for name, o := range t.objects {
		if _, said := o["host"]; !said && strings.HasPrefix(name, sectionDatabases+"/") && t.values["pooler.unix_socket_dir"].text != `""` {
			o["host"] = value{t.values["pooler.unix_socket_dir"].text, ""}
		}
	}
	t.section(&b, "pooler")
	b.WriteString("http: {pooler: \"\"} # PgBouncer opens no other port; \"127.0.0.1:9187\" is pitr's default, with /metrics, /healthz and /readyz\n")
	return b.String()
}

// line writes one setting.
func line(b *strings.Builder, indent int, name string, v value) {
	fmt.Fprintf(b, "%s%s: %s", strings.Repeat("  ", indent), name, v.text)
	if v.comment != "" {
		fmt.Fprintf(b, " # %s", v.comment)
	}
	b.WriteByte('\n')
}

// section writes the settings below a name: values, then those of auth, then databases, users and peers.
func (t *translator) section(b *strings.Builder, name string) {
	fmt.Fprintf(b, "%s:\n", name)
	for _, key := range slices.Sorted(maps.Keys(t.values)) {
		if rest, found := strings.CutPrefix(key, name+"."); found && !strings.Contains(rest, ".") {
			line(b, 1, rest, t.values[key])
		}
	}
	b.WriteString("  auth:\n")
	for _, key := range slices.Sorted(maps.Keys(t.values)) {
		if rest, found := strings.CutPrefix(key, name+".auth."); found {
			line(b, 2, rest, t.values[key])
		}
	}
	for _, kind := range []string{sectionDatabases, sectionUsers, sectionPeers} {
		begun := false
		for _, object := range t.order {
			own, found := strings.CutPrefix(object, kind+"/")
			if !found {
				continue
			}
			if !begun {
				fmt.Fprintf(b, "  %s:\n", kind)
				begun = true
			}
			var fields []string
			for _, key := range slices.Sorted(maps.Keys(t.objects[object])) {
				fields = append(fields, key+": "+t.objects[object][key].text)
			}
			line(b, 2, strconv.Quote(own), value{"{" + strings.Join(fields, ", ") + "}", ""})
		}
	}
}
