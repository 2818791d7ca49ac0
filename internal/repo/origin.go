package repo

// Origin is what a backup tells of the server that it was taken from, besides files: what a restore elsewhere has to be held against. It is in the
// last line of the manifest, so that listing backups does not read it. docs/FORMAT.md, "Origin".
type Origin struct {
	Libc      string           `json:"libc,omitempty"` // version of the C library's collations, as the server tells it; empty: it does not tell
	Preload   Preload          `json:"preload"`
	Databases []OriginDatabase `json:"databases"`
	Files     []OriginFile     `json:"files,omitempty"`  // of the configuration, that lie outside of the data directory
	Limits    []string         `json:"limits,omitempty"` // which lists would have been too long, and end early
}

// Bytes is the size of the databases; zero: some of it may not be asked, or nothing is known.
func (o *Origin) Bytes() (sum int64) {
	if o == nil {
		return 0
	}
	for _, d := range o.Databases {
		if d.Size < 0 {
			return 0
		}
		sum += d.Size
	}
	return sum
}

// Preload are libraries that the server loads by itself, as the settings name them.
type Preload struct {
	Shared  []string `json:"shared,omitempty"`  // shared_preload_libraries
	Session []string `json:"session,omitempty"` // session_preload_libraries
	Local   []string `json:"local,omitempty"`   // local_preload_libraries
}

// OriginDatabase is one database of the server.
type OriginDatabase struct {
	OID      uint32 `json:"oid"`
	Name     string `json:"name"`
	Size     int64  `json:"size"` // in bytes; -1: it may not be asked
	Encoding string `json:"encoding"`
	Collate  string `json:"collate"`
	CType    string `json:"ctype"`

	Collation  Collation         `json:"collation"`            // the database's own
	Collations []Collation       `json:"collations,omitempty"` // others that indexes use
	Extensions []OriginExtension `json:"extensions,omitempty"`
	Unlogged   []string          `json:"unlogged,omitempty"` // tables, as schema.name
	Unread     string            `json:"unread,omitempty"`   // why the last three are not known; empty: they are
}

// Collation is an order of text that comes from a library, whose next version may order otherwise.
type Collation struct {
	Name     string   `json:"name,omitempty"`    // schema.name; empty: that of the database
	Provider string   `json:"provider"`          // collprovider of pg_collation: c libc, i ICU, b builtin
	Locale   string   `json:"locale,omitempty"`  // as the provider calls it
	Version  string   `json:"version,omitempty"` // that the catalog has; empty: none
	Actual   string   `json:"actual,omitempty"`  // that the library had; empty: its order never changes, or is not known
	Indexes  []string `json:"indexes,omitempty"` // that use it, as schema.name
}

// OriginExtension is an extension that a database has.
type OriginExtension struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// OriginFile is a file of the configuration that lies outside of the data directory.
type OriginFile struct {
	Name    string `json:"name"` // postgresql.conf, pg_hba.conf or pg_ident.conf, whatever it was called
	Path    string `json:"path"` // on the server
	Content string `json:"content,omitempty"`
	Unread  string `json:"unread,omitempty"` // why there is no content; empty: there is
}
