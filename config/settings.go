package config

// Setting documents one key of pitr.yaml. A "*" in Key stands for any name.
type Setting struct {
	Key     string
	Default string // as it would be written; empty: none
	Range   string // "a|b" lists the values, "lo..hi" bounds them, empty: any
	Reload  bool   // SIGHUP applies a change; otherwise it takes a restart
	Doc     string
}

// Settings returns every key in the order of the documentation. It is the one source of defaults, ranges and docs/CONFIG.md.
func Settings() []Setting { return settings }

var settings = []Setting{
	{Key: "cluster", Default: "main", Doc: "Name of the Postgres cluster; the first part of every key in the store. Letters, digits, `-`, `_` and `.`."},

	{Key: "postgres.dsn", Default: "postgres://", Doc: "Where Postgres is: libpq URL or keywords, several hosts allowed, of which the archiver finds the primary; what is missing comes from PGHOST and its like. The archiver's user needs the REPLICATION attribute and membership in pg_monitor. May refer to `${VARIABLES}`."},
	{Key: "postgres.data_directory", Doc: "The server's data directory, for `pitr run` and as the default of `pitr restore --into` checks. Empty: $PGDATA."},

	{Key: "pooler.listen", Default: "[127.0.0.1:6432]", Doc: "Addresses (host:port) on which clients connect."},
	{Key: "pooler.pool_mode", Default: "transaction", Range: "session|transaction|statement", Doc: "When a server connection goes back to the pool: when the client disconnects, at the end of each transaction, or after each statement, where a transaction block ends the client."},
	{Key: "pooler.default_pool_size", Default: "20", Range: "1..10000", Doc: "Server connections for each pair of database and user."},
	{Key: "pooler.max_client_conn", Default: "10000", Range: "1..1000000", Doc: "Client connections in all; one more is refused with SQLSTATE 53300."},
	{Key: "pooler.max_prepared_statements", Default: "200", Range: "0..100000", Doc: "Protocol-level prepared statements kept on a server connection in transaction mode; the least recently used is closed beyond that. Zero turns support for them off."},
	{Key: "pooler.query_wait_timeout", Default: "2m", Range: "0..7d", Doc: "How long a client may wait for a server connection before it is disconnected. Zero: for ever."},
	{Key: "pooler.client_login_timeout", Default: "1m", Range: "1s..1h", Doc: "How long a client may take to log in."},
	{Key: "pooler.server_connect_timeout", Default: "15s", Range: "100ms..1h", Doc: "How long connecting and logging in to Postgres may take."},
	{Key: "pooler.server_login_retry", Default: "15s", Range: "0..1h", Doc: "How long to wait before Postgres is tried again after a failed login."},
	{Key: "pooler.server_idle_timeout", Default: "10m", Range: "0..7d", Doc: "A server connection that was idle for longer is closed. Zero: never."},
	{Key: "pooler.server_lifetime", Default: "1h", Range: "0..30d", Doc: "A server connection that is older is closed when it is next released. Zero: never."},
	{Key: "pooler.drain_timeout", Default: "30s", Range: "0..1h", Doc: "How long open transactions may go on after SIGTERM before they are cut."},
	{Key: "pooler.server_reset_timeout", Default: "15s", Range: "100ms..1h", Doc: "How long DISCARD ALL may take on a server connection whose client has left something behind, before the connection is closed instead."},
	{Key: "pooler.client_write_timeout", Default: "5m", Range: "0..7d", Doc: "A client that takes nothing of what its server sends for so long is cut off, since it holds a server. Zero: never."},
	{Key: "pooler.pkt_buf", Default: "4KiB", Range: "1KiB..1MiB", Doc: "How much is read at once from a client that has no server; otherwise it is 64 KiB."},
	{Key: "pooler.workers", Default: "1", Range: "1..256", Doc: "Threads that move data. One is best while Postgres and the pooler share a few cores; each spends some 15 µs on a simple query. Limits and queues are those of the whole process, however many there are."},
	{Key: "pooler.replay_size_max", Default: "16KiB", Range: "0..1MiB", Doc: "Longest batch that is sent again, in transaction mode, when its prepared statement has become unusable (`cached plan must not change result type`, or dropped by somebody). Zero: the client gets the error."},
	{Key: "pooler.max_client_notifications", Default: "1000", Range: "1..1000000", Doc: "Notifications of channels that a client listens to in transaction mode that may be on their way to it; more are dropped."},
	{Key: "pooler.client_tls_sslmode", Default: "disable", Range: "disable|prefer|require", Doc: "Whether clients may, or must, encrypt their connections."},
	{Key: "pooler.client_tls_cert_file", Doc: "Certificate of the pooler towards clients, PEM, with its chain."},
	{Key: "pooler.client_tls_key_file", Doc: "Its private key, PEM."},
	{Key: "pooler.max_login_conn", Default: "1000", Range: "1..100000", Doc: "Client connections that have not logged in yet; one more is closed at once."},
	{Key: "pooler.max_pools", Default: "1000", Range: "1..100000", Doc: "Pairs of database and user that have server connections at the same time."},
	{Key: "pooler.max_cancel_requests", Default: "100", Range: "1..10000", Doc: "Cancel requests on their way to Postgres at the same time; one more is dropped."},
	{Key: "pooler.max_parameter_sets", Default: "1000", Range: "1..100000", Doc: "Different sets of startup parameters per pool whose effect is remembered; beyond that they are asked for again."},
	{Key: "pooler.max_pipeline_messages", Default: "10000", Range: "100..1000000", Doc: "Messages that one client may have sent and Postgres not yet answered, before no more is read from the client."},
	{Key: "pooler.max_client_prepared_statements", Default: "10000", Range: "1..1000000", Doc: "Named protocol-level prepared statements of one client in transaction mode; one more ends the client with SQLSTATE 53400."},
	{Key: "pooler.prepared_statement_size_max", Default: "1MiB", Range: "1KiB..64MiB", Doc: "Longest Parse message of a named statement in transaction mode, since its text is kept; a longer one ends the client with SQLSTATE 54000."},
	{Key: "pooler.max_client_settings_size", Default: "16KiB", Range: "1KiB..1MiB", Doc: "Names and values of all settings of one client that follow it from server to server in transaction mode: those of its startup packet, and what it has SET. What is set beyond that ends with the transaction."},
	{Key: "pooler.lazy_begin", Default: "on", Range: "on|off", Doc: "In transaction mode a BEGIN is answered at once and sent to Postgres together with the first statement, so that a client that is idle in a transaction it has not used holds no server connection. now() is then the time of that statement."},
	{Key: "pooler.reuse_unnamed_statements", Default: "off", Range: "on|off", Doc: "In transaction mode an unnamed statement whose text comes again on a server is not parsed and planned again, but carried out by a named one that is kept there (of max_prepared_statements). That is done outside of transactions, for texts without literals that begin with SELECT, INSERT, UPDATE, DELETE, MERGE, WITH, VALUES or TABLE, and for batches of Parse, Bind, Describe, Execute and Sync that are no longer than replay_size_max. What differs: Postgres may choose a generic plan, which may be a worse one and knows nothing of settings such as enable_seqscan; a table or function that was made since and would now be found first under the same name is not seen until something else about the statement's tables changes; notices of Parse come but once; an error in Bind is logged twice by Postgres; logs and pg_prepared_statements show names."},
	{Key: "pooler.session_objects", Default: "pin", Range: "pin|refuse|reset", Doc: "What happens in transaction mode to what cannot be made anew on another server: temporary tables, cursors WITH HOLD, session-level advisory locks, LISTEN, and a SET that is not understood. `pin`: the server stays with its client as long as it has any; `refuse`: an error with SQLSTATE 0A000; `reset`: they end with the transaction."},
	{Key: "pooler.databases", Doc: "Which server a database name stands for. Empty: every name goes to the host of postgres.dsn under the same name."},
	{Key: "pooler.databases.*.host", Doc: "Host, address or directory of the Unix socket. Empty: that of postgres.dsn."},
	{Key: "pooler.databases.*.port", Range: "1..65535", Doc: "Port. Zero: that of postgres.dsn."},
	{Key: "pooler.databases.*.dbname", Doc: "Database on the server. Empty: the name that the client asked for."},
	{Key: "pooler.databases.*.user", Doc: "Log in to the server as this user. Empty: as the client's user."},
	{Key: "pooler.databases.*.password", Doc: "Password for the server. Empty: that of the client's user where it is known in plain text, or that of postgres.dsn when the users are the same."},
	{Key: "pooler.databases.*.pool_mode", Range: "session|transaction|statement", Doc: "Overrides pooler.pool_mode."},
	{Key: "pooler.databases.*.pool_size", Range: "1..10000", Doc: "Overrides pooler.default_pool_size."},
	{Key: "pooler.users", Doc: "Users who may log in, besides those of pooler.auth.file."},
	{Key: "pooler.users.*.password", Doc: "Plain password or SCRAM-SHA-256 secret as in pg_authid.rolpassword. With a secret alone the pooler cannot log in to Postgres as this user: databases.*.password must say how."},
	{Key: "pooler.users.*.pool_mode", Range: "session|transaction|statement", Doc: "Overrides pool_mode of the database."},
	{Key: "pooler.auth.type", Default: "scram-sha-256", Range: "scram-sha-256|trust", Doc: "How clients log in. With trust the user must still be known if any user is listed."},
	{Key: "pooler.auth.file", Doc: "PgBouncer's userlist.txt: lines of \"user\" \"password or SCRAM secret\"."},

	{Key: "archive.store", Doc: "The repository: `file:///directory` (which must exist) or `s3://bucket/prefix?endpoint=http://host:port&region=…&path_style=true`. S3 credentials come from the usual AWS variables and files."},
	{Key: "archive.slot", Default: "pitr", Doc: "Physical replication slot; it is created when it is missing. Lower-case letters, digits and `_`."},
	{Key: "archive.flush_interval", Default: "1s", Range: "10ms..1m", Doc: "WAL is in the store within this time of its arrival: the loss that a disaster may cause."},
	{Key: "archive.part_size_max", Default: "8MiB", Range: "64KiB..64MiB", Doc: "A part of an open segment is cut when it reaches this size, even before flush_interval."},
	{Key: "archive.puts_in_flight", Default: "8", Range: "1..64", Doc: "How many parts may be on their way to the store at a time. More lets synchronous commits wait little longer than for a put of their own, at the price of more requests."},
	{Key: "archive.buffer_max", Default: "64MiB", Range: "1MiB..16GiB", Doc: "WAL held in memory while the store is slow or away; beyond it reading from Postgres pauses and the slot retains WAL."},
	{Key: "archive.compression", Default: "zstd:1", Range: "zstd:1|zstd:3|zstd:7|zstd:11", Doc: "Codec and level of what is written; the levels are those of the zstd command, roughly."},
	{Key: "archive.store_timeout", Default: "1m", Range: "100ms..1h", Doc: "How long one request to the store may take."},
	{Key: "archive.store_retries", Default: "8", Range: "0..1000", Doc: "How often a failed request is sent again, with growing pauses, before its caller is told. The archiver itself never gives up on WAL."},
	{Key: "archive.shutdown_grace", Default: "5s", Range: "0..1h", Doc: "How long the archiver tries to store what it has received when it is told to stop."},
	{Key: "archive.push_socket", Doc: "Unix socket on which `pitr archiver` takes segments from `pitr wal push`, for example /run/pitr/push.sock; the directory must exist, and only the archiver's own user and root may connect. Empty: none, and each push makes a connection of its own to the store."},
	{Key: "archive.pushes_max", Default: "4", Range: "1..64", Doc: "How many pushes the socket serves at a time; further ones wait. Postgres makes one after the other, so that more are only needed where somebody pushes by hand as well. Each holds a piece of a file in memory."},
	{Key: "archive.push_stall", Default: "30s", Range: "100ms..1h", Doc: "How long either side of the push socket may send nothing, or take nothing, while it is its turn; then the push is cut off, and Postgres repeats it. How long the store takes is another matter: archive.store_timeout."},
	{Key: "archive.encryption.recipients", Doc: "age recipients (`age1…`) for whom everything that is written is encrypted; any one of their identities opens it. Empty: nothing is encrypted."},
	{Key: "archive.encryption.identity_file", Doc: "File of age identities, as age-keygen or `pitr encryption keygen` writes it, for what reads: restore, wal fetch, verify --level checksum. The archiver, backups and wal push never open it, and need not have it."},
	{Key: "archive.encryption.fingerprint_key", Doc: "A secret text that keys the fingerprints by which writers recognise content that they cannot read; may refer to `${VARIABLES}`. The same for all who write to a repository. Empty: the recipients serve as the key, and whoever has both them and the bucket can test a guess at the whole content of an object."},
	{Key: "archive.catalog_interval", Default: "5m", Range: "0..1d", Doc: "How often the names of all relations are looked at, and stored if they have changed, so that `pitr log` can name tables, dropped ones too. It is also done some seconds after DDL. The archiver's user must be able to connect to every database. Zero: never."},
	{Key: "archive.catalog_relations_max", Default: "200000", Range: "1..1000000", Doc: "Tables, indexes and sequences of the whole cluster whose names are stored; databases that go beyond it are left out, with a warning."},

	{Key: "backup.schedule", Default: "0 2 * * *", Doc: "Cron expression (five fields, local time) of the base backups; empty: none by itself."},
	{Key: "backup.buffer_max", Default: "256MiB", Range: "16MiB..64GiB", Doc: "Memory for extents and packs in flight during a backup or a restore."},
	{Key: "backup.wal_wait", Default: "5m", Range: "1s..1d", Doc: "How long a finished backup waits for its WAL to arrive in the repository before it is given up."},
	{Key: "backup.retention.window", Default: "7d", Range: "0..3650d", Doc: "Any second of this span, counted back from now, stays restorable."},
	{Key: "backup.retention.minimum", Default: "2", Range: "1..10000", Doc: "At least so many backups are kept, whatever their age."},

	{Key: "restore.time_zone", Doc: "Zone of target times that are written without one, for example Europe/Berlin. Empty: such times are refused."},
	{Key: "restore.parallel", Default: "8", Range: "1..256", Doc: "Requests to the store at the same time."},
	{Key: "restore.open_timeout", Default: "1h", Range: "1s..30d", Doc: "How long `restore --start` waits for Postgres to finish its recovery."},

	{Key: "http.pooler", Default: "127.0.0.1:9187", Doc: "Address of the pooler's /metrics, /healthz and /readyz; empty: none."},
	{Key: "http.archiver", Default: "127.0.0.1:9188", Doc: "Address of the archiver's /metrics, /healthz and /readyz; empty: none."},

	{Key: "log.level", Default: "info", Range: "debug|info|warn|error", Doc: "The least severe messages that are printed."},
	{Key: "log.format", Default: "text", Range: "text|json", Doc: "Form of the log lines on stderr."},
}
