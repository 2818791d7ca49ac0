package config

import (
	"fmt"
	"strconv"
	"strings"
)

// Host is one of the servers of a database. An empty name and a zero port are those of postgres.dsn.
type Host struct {
	Name string
	Port uint16
}

// hostsMax bounds the servers of one database.
const hostsMax = 64

// Hosts returns the servers of a database in the order in which they are written; none where the entry names neither host nor port.
func (d Database) Hosts() ([]Host, error) {
	names, ports := split(d.Host), split(d.Port)
	switch {
	case len(names) > hostsMax || len(ports) > hostsMax:
		return nil, fmt.Errorf("names more than %d hosts", hostsMax)
	case len(names) > 1 && len(ports) > 1 && len(names) != len(ports):
		return nil, fmt.Errorf("has %d hosts and %d ports: one port, or as many as hosts", len(names), len(ports))
	case len(names) <= 1 && len(ports) > 1:
		return nil, fmt.Errorf("has %d ports for one host", len(ports))
	}
	hosts := make([]Host, max(len(names), len(ports)))
	for i := range hosts {
		if len(names) > 0 {
			if hosts[i].Name = names[i]; hosts[i].Name == "" && len(names) > 1 {
				return nil, fmt.Errorf("host %d of the list is empty", i+1)
			}
		}
		if len(ports) > 0 {
			text := ports[min(i, len(ports)-1)]
			port, err := strconv.ParseUint(text, 10, 16)
			if err != nil || port == 0 {
				return nil, fmt.Errorf("%q is no port: 1 to 65535", text)
			}
			hosts[i].Port = uint16(port)
		}
	}
	return hosts, nil
}

// split cuts a list at its commas; an empty one has no parts.
func split(list string) []string {
	if strings.TrimSpace(list) == "" {
		return nil
	}
	parts := strings.Split(list, ",")
	for i := range parts {
		parts[i] = strings.TrimSpace(parts[i])
	}
	return parts
}
