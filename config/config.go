// Package config holds every setting of pitr: its name, default, range and documentation. It is pure data: it reads one
// pitr.yaml, checks it as a whole, and never opens a socket or touches the store. docs/CONFIG.md is generated from it.
package config

// Config is one pitr.yaml with all defaults filled in. The zero value is not valid; use Load, Parse or Default.
type Config struct {
	Cluster  string   `yaml:"cluster"`
	Postgres Postgres `yaml:"postgres"`
	Pooler   Pooler   `yaml:"pooler"`
	Archive  Archive  `yaml:"archive"`
	Backup   Backup   `yaml:"backup"`
	Restore  Restore  `yaml:"restore"`
	Verify   Verify   `yaml:"verify"`
	HTTP     HTTP     `yaml:"http"`
	Log      Log      `yaml:"log"`

	// Path is the file that the values came from, absolute; empty for Default.
	Path string `yaml:"-"`
}

// Postgres says where the server is.
type Postgres struct {
	DSN           DSN    `yaml:"dsn"`
	DataDirectory string `yaml:"data_directory"`
}

// Pooler configures the data plane. Names are PgBouncer's where PgBouncer has the setting.
type Pooler struct {
	Listen                []string `yaml:"listen"`
	UnixSocketDir         string   `yaml:"unix_socket_dir"`
	UnixSocketMode        string   `yaml:"unix_socket_mode"`
	UnixSocketGroup       string   `yaml:"unix_socket_group"`
	ListenPort            int      `yaml:"listen_port"`
	ProxyProtocolFrom     []string `yaml:"proxy_protocol_from"`
	PoolMode              string   `yaml:"pool_mode"`
	DefaultPoolSize       int      `yaml:"default_pool_size"`
	MaxClientConn         int      `yaml:"max_client_conn"`
	MaxPreparedStatements int      `yaml:"max_prepared_statements"`
	QueryWaitTimeout      Duration `yaml:"query_wait_timeout"`
	ClientLoginTimeout    Duration `yaml:"client_login_timeout"`
	ServerConnectTimeout  Duration `yaml:"server_connect_timeout"`
	ServerLoginRetry      Duration `yaml:"server_login_retry"`
	ServerIdleTimeout     Duration `yaml:"server_idle_timeout"`
	ServerLifetime        Duration `yaml:"server_lifetime"`
	DrainTimeout          Duration `yaml:"drain_timeout"`
	TakeoverSocket        string   `yaml:"takeover_socket"`
	TakeoverTimeout       Duration `yaml:"takeover_timeout"`

	MinPoolSize              int      `yaml:"min_pool_size"`
	ReservePoolSize          int      `yaml:"reserve_pool_size"`
	ReservePoolTimeout       Duration `yaml:"reserve_pool_timeout"`
	MaxDBConnections         int      `yaml:"max_db_connections"`
	MaxDBClientConnections   int      `yaml:"max_db_client_connections"`
	MaxUserConnections       int      `yaml:"max_user_connections"`
	MaxUserClientConnections int      `yaml:"max_user_client_connections"`
	QueryWaitNotify          Duration `yaml:"query_wait_notify"`
	QueryTimeout             Duration `yaml:"query_timeout"`
	TransactionTimeout       Duration `yaml:"transaction_timeout"`
	IdleTransactionTimeout   Duration `yaml:"idle_transaction_timeout"`
	ClientIdleTimeout        Duration `yaml:"client_idle_timeout"`
	CancelWaitTimeout        Duration `yaml:"cancel_wait_timeout"`
	ServerCheckQuery         string   `yaml:"server_check_query"`
	ServerCheckDelay         Duration `yaml:"server_check_delay"`
	ServerResetQuery         string   `yaml:"server_reset_query"`
	ServerResetQueryAlways   string   `yaml:"server_reset_query_always"`
	ServerLifetimeJitter     int      `yaml:"server_lifetime_jitter"`
	ServerConnectRate        int      `yaml:"server_connect_rate"`
	StatsPeriod              Duration `yaml:"stats_period"`
	LoadBalanceHosts         string   `yaml:"load_balance_hosts"`
	MaxReplicaLag            Duration `yaml:"max_replica_lag"`
	HostPollInterval         Duration `yaml:"host_poll_interval"`
	DNSMaxTTL                Duration `yaml:"dns_max_ttl"`

	ServerResetTimeout          Duration `yaml:"server_reset_timeout"`
	ClientWriteTimeout          Duration `yaml:"client_write_timeout"`
	PktBuf                      ByteSize `yaml:"pkt_buf"`
	Workers                     int      `yaml:"workers"`
	ReplaySizeMax               ByteSize `yaml:"replay_size_max"`
	MaxClientNotifications      int      `yaml:"max_client_notifications"`
	ClientTLSSSLMode            string   `yaml:"client_tls_sslmode"`
	ClientTLSCertFile           string   `yaml:"client_tls_cert_file"`
	ClientTLSKeyFile            string   `yaml:"client_tls_key_file"`
	ClientTLSCAFile             string   `yaml:"client_tls_ca_file"`
	ClientTLSProtocols          string   `yaml:"client_tls_protocols"`
	ClientTLSCiphers            string   `yaml:"client_tls_ciphers"`
	ServerTLSSSLMode            string   `yaml:"server_tls_sslmode"`
	ServerTLSCAFile             string   `yaml:"server_tls_ca_file"`
	ServerTLSCertFile           string   `yaml:"server_tls_cert_file"`
	ServerTLSKeyFile            string   `yaml:"server_tls_key_file"`
	MaxLoginConn                int      `yaml:"max_login_conn"`
	MaxLoginConnPerAddress      int      `yaml:"max_login_conn_per_address"`
	MaxPools                    int      `yaml:"max_pools"`
	MaxCancelRequests           int      `yaml:"max_cancel_requests"`
	MaxParameterSets            int      `yaml:"max_parameter_sets"`
	MaxPipelineMessages         int      `yaml:"max_pipeline_messages"`
	MaxClientPreparedStatements int      `yaml:"max_client_prepared_statements"`
	PreparedStatementSizeMax    ByteSize `yaml:"prepared_statement_size_max"`
	MaxClientSettingsSize       ByteSize `yaml:"max_client_settings_size"`
	LazyBegin                   string   `yaml:"lazy_begin"`
	ReuseUnnamedStatements      string   `yaml:"reuse_unnamed_statements"`
	SessionObjects              string   `yaml:"session_objects"`

	MaxReplicationConnections int `yaml:"max_replication_connections"`

	TCPKeepalive           string   `yaml:"tcp_keepalive"`
	TCPKeepidle            Duration `yaml:"tcp_keepidle"`
	TCPKeepintvl           Duration `yaml:"tcp_keepintvl"`
	TCPKeepcnt             int      `yaml:"tcp_keepcnt"`
	TCPUserTimeout         Duration `yaml:"tcp_user_timeout"`
	ServerRoundRobin       string   `yaml:"server_round_robin"`
	ServerFastClose        string   `yaml:"server_fast_close"`
	DisablePQExec          string   `yaml:"disable_pqexec"`
	ApplicationNameAddHost string   `yaml:"application_name_add_host"`
	LoginNotifyMessage     string   `yaml:"login_notify_message"`
	LogConnections         string   `yaml:"log_connections"`
	LogDisconnections      string   `yaml:"log_disconnections"`
	LogPoolerErrors        string   `yaml:"log_pooler_errors"`

	AdminUsers []string `yaml:"admin_users"`
	StatsUsers []string `yaml:"stats_users"`

	PeerID    int                 `yaml:"peer_id"`
	Peers     map[string]Peer     `yaml:"peers"`
	Databases map[string]Database `yaml:"databases"`
	Users     map[string]User     `yaml:"users"`
	Auth      Auth                `yaml:"auth"`
}

// Database says which server a database name of the clients stands for. The name "*" stands for all that are not listed.
// An empty field is taken from postgres.dsn; an empty DBName is the client's own database name, an empty User the client's.
type Database struct {
	Host     string `yaml:"host"` // one, or several with commas: see Hosts
	Port     string `yaml:"port"` // likewise
	DBName   string `yaml:"dbname"`
	User     string `yaml:"user"`
	Password Secret `yaml:"password"`
	PoolMode string `yaml:"pool_mode"`
	PoolSize int    `yaml:"pool_size"`

	AuthUser               string   `yaml:"auth_user"`
	AuthQuery              string   `yaml:"auth_query"`
	AuthDBName             string   `yaml:"auth_dbname"`
	MinPoolSize            int      `yaml:"min_pool_size"`
	ReservePoolSize        int      `yaml:"reserve_pool_size"`
	MaxDBConnections       int      `yaml:"max_db_connections"`
	MaxDBClientConnections int      `yaml:"max_db_client_connections"`
	ServerLifetime         Duration `yaml:"server_lifetime"`

	ConnectQuery       string   `yaml:"connect_query"`
	ClientEncoding     string   `yaml:"client_encoding"`
	DateStyle          string   `yaml:"datestyle"`
	TimeZone           string   `yaml:"timezone"`
	TargetSessionAttrs string   `yaml:"target_session_attrs"`
	LoadBalanceHosts   string   `yaml:"load_balance_hosts"`
	MaxReplicaLag      Duration `yaml:"max_replica_lag"`
}

// Peer is another pooler behind the same address, by its peer_id.
type Peer struct {
	Host     string `yaml:"host"`
	Port     int    `yaml:"port"`
	PoolSize int    `yaml:"pool_size"`
}

// User is one who may log in: Password is the plain text, or an MD5 or SCRAM-SHA-256 secret as pg_authid.rolpassword holds it.
type User struct {
	Password Secret `yaml:"password"`
	PoolMode string `yaml:"pool_mode"`

	PoolSize                 int      `yaml:"pool_size"`
	ReservePoolSize          int      `yaml:"reserve_pool_size"`
	MaxUserConnections       int      `yaml:"max_user_connections"`
	MaxUserClientConnections int      `yaml:"max_user_client_connections"`
	QueryWaitTimeout         Duration `yaml:"query_wait_timeout"`
	QueryTimeout             Duration `yaml:"query_timeout"`
	TransactionTimeout       Duration `yaml:"transaction_timeout"`
	IdleTransactionTimeout   Duration `yaml:"idle_transaction_timeout"`
	ClientIdleTimeout        Duration `yaml:"client_idle_timeout"`
}

// Auth says how clients prove who they are.
type Auth struct {
	Type      string `yaml:"type"`
	File      string `yaml:"file"`
	HBAFile   string `yaml:"hba_file"`
	IdentFile string `yaml:"ident_file"`

	User               string   `yaml:"user"`
	Query              string   `yaml:"query"`
	DBName             string   `yaml:"dbname"`
	QueryCacheMax      int      `yaml:"query_cache_max"`
	QueryCacheLifetime Duration `yaml:"query_cache_lifetime"`
	QueryConnections   int      `yaml:"query_connections"`
}

// Archive configures the way from Postgres to the store.
type Archive struct {
	Store               string   `yaml:"store"`
	Copies              []string `yaml:"copies"`
	Quorum              int      `yaml:"quorum"`
	CopiesBufferMax     ByteSize `yaml:"copies_buffer_max"`
	CopiesCheck         Duration `yaml:"copies_check"`
	Slot                string   `yaml:"slot"`
	StreamFrom          string   `yaml:"stream_from"`
	FlushInterval       Duration `yaml:"flush_interval"`
	PartSizeMax         ByteSize `yaml:"part_size_max"`
	PutsInFlight        int      `yaml:"puts_in_flight"`
	BufferMax           ByteSize `yaml:"buffer_max"`
	Compression         string   `yaml:"compression"`
	StoreTimeout        Duration `yaml:"store_timeout"`
	StoreRetries        int      `yaml:"store_retries"`
	Lock                Duration `yaml:"lock"`
	LockMode            string   `yaml:"lock_mode"`
	SweepGrace          Duration `yaml:"sweep_grace"`
	ShutdownGrace       Duration `yaml:"shutdown_grace"`
	Lease               Duration `yaml:"lease"`
	CatalogInterval     Duration `yaml:"catalog_interval"`
	CatalogRelationsMax int      `yaml:"catalog_relations_max"`
	PushSocket          string   `yaml:"push_socket"`
	PushesMax           int      `yaml:"pushes_max"`
	PushStall           Duration `yaml:"push_stall"`

	Encryption Encryption `yaml:"encryption"`
}

// Stores are all stores of the repository: the main one, if it is set, and the copies.
func (a Archive) Stores() []string {
	if a.Store == "" {
		return nil
	}
	return append([]string{a.Store}, a.Copies...)
}

// Encryption says for whom objects are encrypted before they leave, and how they are read.
type Encryption struct {
	Recipients     []string `yaml:"recipients"`
	IdentityFile   string   `yaml:"identity_file"`
	FingerprintKey Secret   `yaml:"fingerprint_key"`
}

// Backup configures base backups and how long they are kept.
type Backup struct {
	Schedule  string    `yaml:"schedule"`
	BufferMax ByteSize  `yaml:"buffer_max"`
	WALWait   Duration  `yaml:"wal_wait"`
	Retention Retention `yaml:"retention"`

	Incremental      string `yaml:"incremental"`
	ChecksumFailures string `yaml:"checksum_failures"`
	From             string `yaml:"from"`
	Source           string `yaml:"source"`

	Jitter     Duration `yaml:"jitter"`
	RateRead   ByteSize `yaml:"rate_read"`
	RateUpload ByteSize `yaml:"rate_upload"`

	RepackBelow int `yaml:"repack_below"`
}

// Retention keeps every backup that a restore into Window may need, and at least Minimum of them; others stay for Grace.
type Retention struct {
	Window  Duration `yaml:"window"`
	Minimum int      `yaml:"minimum"`
	Grace   Duration `yaml:"grace"`
}

// Restore configures `pitr restore`.
type Restore struct {
	TimeZone    string   `yaml:"time_zone"`
	Parallel    int      `yaml:"parallel"`
	OpenTimeout Duration `yaml:"open_timeout"`
	PrefetchMax ByteSize `yaml:"prefetch_max"`
	FenceWatch  Duration `yaml:"fence_watch"`
}

// Verify says how the repository is proven, by the archiver and by `pitr verify`.
type Verify struct {
	InventoryInterval Duration `yaml:"inventory_interval"`
	ChecksumDays      int      `yaml:"checksum_days"`
	RestoreInterval   Duration `yaml:"restore_interval"`
	Directory         string   `yaml:"directory"`
	Database          string   `yaml:"database"`
	Queries           []string `yaml:"queries"`
}

// HTTP says where /healthz, /readyz and /metrics of each service listen; empty turns one off.
type HTTP struct {
	Pooler   string `yaml:"pooler"`
	Archiver string `yaml:"archiver"`
}

// Log configures slog.
type Log struct {
	Level  string `yaml:"level"`
	Format string `yaml:"format"`
}
