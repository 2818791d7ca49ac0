package config

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Change is a setting that differs between two configurations. Secrets are hidden.
type Change struct {
	Key      string
	From, To string // as they would be written; empty: nothing
	Reload   bool   // it can be applied without a restart
}

func (c Change) String() string {
	if !c.Reload {
		return fmt.Sprintf("%s: %s -> %s needs a restart", c.Key, quoteYAML(c.From), quoteYAML(c.To))
	}
	return fmt.Sprintf("%s: %s -> %s", c.Key, quoteYAML(c.From), quoteYAML(c.To))
}

// leaf is one value of a configuration.
type leaf struct {
	shown string
	value any
}

func (l leaf) isZero() bool { return reflect.ValueOf(l.value).IsZero() }

// Changes returns what differs, sorted by key.
func Changes(from, to *Config) []Change {
	before, after := map[string]leaf{}, map[string]leaf{}
	flatten(before, "", reflect.ValueOf(from).Elem())
	flatten(after, "", reflect.ValueOf(to).Elem())
	var changes []Change
	note := func(key string) {
		setting, found := lookup(key)
		if !found {
			setting, _ = lookup(key[:strings.LastIndexByte(key, '.')]) // a name that came or went
		}
		changes = append(changes, Change{Key: key, From: before[key].shown, To: after[key].shown, Reload: setting.Reload})
	}
	for key, was := range before {
		if _, has := after[key]; !has && was.isZero() {
			continue
		}
		if !reflect.DeepEqual(was.value, after[key].value) {
			note(key)
		}
	}
	for key, is := range after {
		if _, had := before[key]; !had && !is.isZero() {
			note(key)
		}
	}
	slices.SortFunc(changes, func(a, b Change) int { return strings.Compare(a.Key, b.Key) })
	return changes
}

// InForce returns what holds once a configuration was read again by a process that runs: the new one, but for what needs a restart.
func InForce(running, to *Config) *Config {
	out := *to
	for _, setting := range settings {
		if setting.Reload || strings.Contains(setting.Key, "*") {
			continue
		}
		path := strings.Split(setting.Key, ".")
		fieldOf(reflect.ValueOf(&out).Elem(), path).Set(fieldOf(reflect.ValueOf(running).Elem(), path))
	}
	return &out
}

// flatten notes the values below v by their keys.
func flatten(into map[string]leaf, key string, v reflect.Value) {
	switch {
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			if name := v.Type().Field(i).Tag.Get("yaml"); name != "-" {
				flatten(into, join(key, name), v.Field(i))
			}
		}
	case v.Kind() == reflect.Map:
		for _, name := range v.MapKeys() {
			into[join(key, name.String())] = leaf{"there", true}
			flatten(into, join(key, name.String()), v.MapIndex(name))
		}
	case v.Kind() == reflect.Slice:
		texts := make([]string, v.Len())
		for i := range texts {
			texts[i] = fmt.Sprint(v.Index(i).Interface())
		}
		into[key] = leaf{"[" + strings.Join(texts, ", ") + "]", strings.Join(texts, "\x00")}
	default:
		into[key] = leaf{fmt.Sprint(v.Interface()), v.Interface()}
	}
}

// PoolerSetting is a setting of the pooler as its console shows it: under PgBouncer's name, time spans in seconds.
type PoolerSetting struct {
	Name, Value, Default string
	Reload               bool
}

// PoolerSettings returns all settings of the pooler but for those of single databases and users, in the order of the documentation.
func PoolerSettings(cfg *Pooler) []PoolerSetting {
	now, usual := &Config{Pooler: *cfg}, Default()
	var list []PoolerSetting
	for _, setting := range settings {
		name, ours := strings.CutPrefix(setting.Key, "pooler.")
		if !ours || strings.Contains(name, "*") || name == "databases" || name == "users" {
			continue
		}
		path := strings.Split(setting.Key, ".")
		list = append(list, PoolerSetting{name, consoleText(fieldOf(reflect.ValueOf(now).Elem(), path)), consoleText(fieldOf(reflect.ValueOf(usual).Elem(), path)), setting.Reload})
	}
	return list
}

func consoleText(v reflect.Value) string {
	if d, isDuration := v.Interface().(Duration); isDuration {
		return strconv.FormatFloat(d.D().Seconds(), 'f', -1, 64)
	}
	if size, isSize := v.Interface().(ByteSize); isSize {
		return strconv.FormatInt(int64(size), 10)
	}
	if v.Kind() == reflect.Slice {
		list, _ := v.Interface().([]string)
		return strings.Join(list, ",")
	}
	return fmt.Sprint(v.Interface())
}

// Errors of SetPooler.
var (
	ErrUnknownSetting = errors.New("there is no such setting")
	ErrNeedsRestart   = errors.New("the setting cannot be changed without a restart")
)

// SetPooler returns a configuration in which one setting of the pooler has another value, written as in pitr.yaml or, as PgBouncer writes it, a time span as a
// number of seconds.
func SetPooler(cfg Config, name, text string) (*Config, error) {
	key := "pooler." + name
	setting, found := lookup(key)
	if !found || setting.Key != key || strings.Contains(name, "*") || key == "pooler.databases" || key == "pooler.users" || key == "pooler.peers" {
		return nil, fmt.Errorf("%s: %w", name, ErrUnknownSetting)
	}
	if !setting.Reload {
		return nil, fmt.Errorf("%s: %w", name, ErrNeedsRestart)
	}
	field := fieldOf(reflect.ValueOf(&cfg).Elem(), strings.Split(key, "."))
	if field.Kind() == reflect.Slice {
		field.Set(reflect.ValueOf(strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })))
		return &cfg, nil
	}
	if _, isDuration := field.Interface().(Duration); isDuration {
		if seconds, err := strconv.ParseFloat(text, 64); err == nil && seconds >= 0 && seconds < 1e9 {
			text = Duration(seconds * float64(time.Second)).D().String()
			if seconds == 0 {
				text = "0"
			}
		}
	}
	err := setScalar(field, text)
	if err == nil {
		err = checkRange(key, text)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %q %w", name, text, err)
	}
	return &cfg, nil
}
