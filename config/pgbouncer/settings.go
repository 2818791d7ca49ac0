package pgbouncer

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// setting says what becomes of one of PgBouncer's settings.
type setting struct {
	key  string // ours; empty: it has none
	kind kind   // how its value is written
	note string // what is different here; of a setting without a key, why it has no meaning
}

// kind is a way in which PgBouncer writes values, and we do.
type kind func(value string) (string, error)

// text is quoted as YAML and JSON do.
func text(value string) (string, error) { return strconv.Quote(value), nil }

// secret is a text in which ${ refers to the environment, unless it is written $${.
func secret(value string) (string, error) { return text(strings.ReplaceAll(value, "${", "$${")) }

// number is a whole one: cf_set_int of libusual's cfparser.c.
func number(value string) (string, error) {
	n, err := strconv.ParseInt(value, 0, 32)
	if err != nil {
		return "", fmt.Errorf("%q is no whole number", value)
	}
	return strconv.FormatInt(n, 10), nil
}

// seconds may have a fraction: cf_set_time_usec.
func seconds(value string) (string, error) {
	n, err := strconv.ParseFloat(value, 64)
	if err != nil || n < 0 || math.IsNaN(n) || n > math.MaxInt32 {
		return "", fmt.Errorf("%q is no time in seconds", value)
	}
	return (time.Duration(n*1e6) * time.Microsecond).String(), nil
}

// deadline is a time that has an end here: zero, which is none, becomes an hour.
func deadline(value string) (string, error) {
	text, err := seconds(value)
	if text == "0s" {
		text = "1h0m0s"
	}
	return text, err
}

// milliseconds is a whole number of them.
func milliseconds(value string) (string, error) {
	n, err := number(value)
	if err != nil || strings.HasPrefix(n, "-") {
		return "", fmt.Errorf("%q is no time in milliseconds", value)
	}
	return n + "ms", nil
}

// bytes is a size without a unit.
func bytes(value string) (string, error) {
	n, err := strconv.ParseUint(value, 10, 31)
	if err != nil {
		return "", fmt.Errorf("%q is no size in bytes", value)
	}
	return fmt.Sprintf("%dB", n), nil
}

// boolean is 0 or 1.
func boolean(value string) (string, error) {
	switch value {
	case "0":
		return `"off"`, nil
	case "1":
		return `"on"`, nil
	}
	return "", fmt.Errorf("%q is neither 0 nor 1", value)
}

// names is a list with commas.
func names(value string) (string, error) {
	var quoted []string
	for name := range strings.SplitSeq(value, ",") {
		if name = strings.TrimSpace(name); name != "" {
			quoted = append(quoted, strconv.Quote(name))
		}
	}
	return "[" + strings.Join(quoted, ", ") + "]", nil
}

// octal is a file mode.
func octal(value string) (string, error) {
	if _, err := strconv.ParseUint(value, 8, 12); err != nil {
		return "", fmt.Errorf("%q is no file mode", value)
	}
	return strconv.Quote(value), nil
}

// authType turns pam, ldap and the old crypt down.
func authType(value string) (string, error) {
	switch value {
	case "pam", "ldap", "crypt":
		return "", fmt.Errorf("pitr has no auth_type %s; scram-sha-256 with auth_query asks Postgres itself", value)
	}
	return text(value)
}

// serverTLS is prefer where PgBouncer is not told, too.
const (
	memory = "memory is taken where something waits to be sent, and not per connection"
	kernel = "the kernel's own value holds"
	events = "events of one loop are dealt with in turn, and none of them starves"
)

// settings are all of pgbouncer.ini(5), version 1.26, as SHOW CONFIG lists them. testdata/show_config.txt is what that version prints.
var settings = map[string]setting{
	"admin_users":                 {key: "pooler.admin_users", kind: names},
	"stats_users":                 {key: "pooler.stats_users", kind: names},
	"auth_dbname":                 {key: "pooler.auth.dbname", kind: text},
	"auth_file":                   {key: "pooler.auth.file", kind: text},
	"auth_hba_file":               {key: "pooler.auth.hba_file", kind: text},
	"auth_ident_file":             {key: "pooler.auth.ident_file", kind: text},
	"auth_query":                  {key: "pooler.auth.query", kind: text},
	"auth_type":                   {key: "pooler.auth.type", kind: authType},
	"auth_user":                   {key: "pooler.auth.user", kind: text},
	"cancel_wait_timeout":         {key: "pooler.cancel_wait_timeout", kind: seconds},
	"client_idle_timeout":         {key: "pooler.client_idle_timeout", kind: seconds},
	"client_login_timeout":        {key: "pooler.client_login_timeout", kind: deadline},
	"client_tls_ca_file":          {key: "pooler.client_tls_ca_file", kind: text},
	"client_tls_cert_file":        {key: "pooler.client_tls_cert_file", kind: text},
	"client_tls_ciphers":          {key: "pooler.client_tls_ciphers", kind: text},
	"client_tls_key_file":         {key: "pooler.client_tls_key_file", kind: text},
	"client_tls_protocols":        {key: "pooler.client_tls_protocols", kind: text},
	"client_tls_sslmode":          {key: "pooler.client_tls_sslmode", kind: text},
	"default_pool_size":           {key: "pooler.default_pool_size", kind: number},
	"idle_transaction_timeout":    {key: "pooler.idle_transaction_timeout", kind: seconds},
	"max_client_conn":             {key: "pooler.max_client_conn", kind: number},
	"max_db_client_connections":   {key: "pooler.max_db_client_connections", kind: number},
	"max_db_connections":          {key: "pooler.max_db_connections", kind: number},
	"max_prepared_statements":     {key: "pooler.max_prepared_statements", kind: number},
	"max_user_client_connections": {key: "pooler.max_user_client_connections", kind: number},
	"max_user_connections":        {key: "pooler.max_user_connections", kind: number},
	"min_pool_size":               {key: "pooler.min_pool_size", kind: number},
	"pkt_buf":                     {key: "pooler.pkt_buf", kind: bytes, note: "how much is read at once from a client without a server; " + memory},
	"peer_id":                     {key: "pooler.peer_id", kind: number},
	"pool_mode":                   {key: "pooler.pool_mode", kind: text},
	"query_timeout":               {key: "pooler.query_timeout", kind: seconds},
	"query_wait_notify":           {key: "pooler.query_wait_notify", kind: seconds},
	"query_wait_timeout":          {key: "pooler.query_wait_timeout", kind: seconds},
	"reserve_pool_size":           {key: "pooler.reserve_pool_size", kind: number},
	"reserve_pool_timeout":        {key: "pooler.reserve_pool_timeout", kind: seconds},
	"server_check_delay":          {key: "pooler.server_check_delay", kind: seconds},
	"server_check_query":          {key: "pooler.server_check_query", kind: text},
	"server_connect_timeout":      {key: "pooler.server_connect_timeout", kind: deadline},
	"server_idle_timeout":         {key: "pooler.server_idle_timeout", kind: seconds},
	"server_lifetime":             {key: "pooler.server_lifetime", kind: seconds},
	"server_login_retry":          {key: "pooler.server_login_retry", kind: seconds},
	"server_fast_close":           {key: "pooler.server_fast_close", kind: boolean},
	"server_round_robin":          {key: "pooler.server_round_robin", kind: boolean},
	"server_reset_query":          {key: "pooler.server_reset_query", kind: text},
	"server_reset_query_always":   {key: "pooler.server_reset_query_always", kind: boolean},
	"server_tls_ca_file":          {key: "pooler.server_tls_ca_file", kind: text},
	"server_tls_cert_file":        {key: "pooler.server_tls_cert_file", kind: text},
	"server_tls_key_file":         {key: "pooler.server_tls_key_file", kind: text},
	"server_tls_sslmode":          {key: "pooler.server_tls_sslmode", kind: text},
	"stats_period":                {key: "pooler.stats_period", kind: seconds},
	"transaction_timeout":         {key: "pooler.transaction_timeout", kind: seconds},
	"application_name_add_host":   {key: "pooler.application_name_add_host", kind: boolean},
	"dns_max_ttl":                 {key: "pooler.dns_max_ttl", kind: seconds},
	"disable_pqexec":              {key: "pooler.disable_pqexec", kind: boolean},
	"log_connections":             {key: "pooler.log_connections", kind: boolean},
	"log_disconnections":          {key: "pooler.log_disconnections", kind: boolean},
	"log_pooler_errors":           {key: "pooler.log_pooler_errors", kind: boolean},
	"login_notify_message":        {key: "pooler.login_notify_message", kind: text},
	"tcp_keepalive":               {key: "pooler.tcp_keepalive", kind: boolean},
	"tcp_keepcnt":                 {key: "pooler.tcp_keepcnt", kind: number},
	"tcp_keepidle":                {key: "pooler.tcp_keepidle", kind: seconds},
	"tcp_keepintvl":               {key: "pooler.tcp_keepintvl", kind: seconds},
	"tcp_user_timeout":            {key: "pooler.tcp_user_timeout", kind: milliseconds},
	"unix_socket_group":           {key: "pooler.unix_socket_group", kind: text},
	"unix_socket_dir":             {key: "pooler.unix_socket_dir", kind: text},
	"unix_socket_mode":            {key: "pooler.unix_socket_mode", kind: octal},

	"listen_addr": {note: "part of pooler.listen"},
	"listen_port": {note: "part of pooler.listen"},

	"autodb_idle_timeout":       {note: "a database that `*` stands for costs nothing once its pool is empty"},
	"auth_ldap_options":         {note: "there is no auth_type ldap"},
	"client_tls13_ciphers":      {note: "Go chooses among the ciphers of TLS 1.3, all of which are secure"},
	"client_tls_dheparams":      {note: "key exchange is ECDHE"},
	"client_tls_ecdhcurve":      {note: "Go offers its curves"},
	"dns_nxdomain_ttl":          {note: "a name is resolved for each new connection to a server"},
	"dns_zone_check_period":     {note: "a name is resolved for each new connection to a server"},
	"ignore_startup_parameters": {note: "every startup parameter is understood: what Postgres knows follows its client"},
	"listen_backlog":            {note: kernel + " (net.core.somaxconn)"},
	"log_stats":                 {note: "figures are at /metrics and in SHOW STATS"},
	"max_packet_size":           {note: "messages are passed on as they arrive, whatever their size"},
	"pool_idle_timeout":         {note: "an empty pool costs nothing"},
	"resolv_conf":               {note: "the system's resolver is asked"},
	"sbuf_loopcnt":              {note: events},
	"scram_iterations":          {note: "secrets are made by whoever sets a password"},
	"server_tls13_ciphers":      {note: "Go chooses among the ciphers of TLS 1.3, all of which are secure"},
	"server_tls_ciphers":        {note: "Go chooses among the ciphers that are secure"},
	"server_tls_protocols":      {note: "TLS 1.2 and 1.3"},
	"so_reuseport":              {note: "one process uses all cores: pooler.workers"},
	"tcp_defer_accept":          {note: "who sends nothing is cut off by client_login_timeout"},
	"tcp_socket_buffer":         {note: kernel},
	"track_extra_parameters":    {note: "every parameter that a client sets follows it, in transaction mode too"},
	"service_name":              {note: "it is about Windows"},
	"conffile":                  {note: "RELOAD reads the file again that pitr was started with"},
	"syslog":                    {note: "pitr logs to standard error or the logfile; systemd passes it on"},
	"syslog_facility":           {note: "see syslog"},
	"syslog_ident":              {note: "see syslog"},
}

// processSettings are about the process and not about the pooler: Process has them.
var processSettings = []string{"logfile", "pidfile", "user", "verbose", "job_name"}

// databaseSettings are those of a line of [databases] that have a key of ours, below pooler.databases.NAME.
var databaseSettings = map[string]setting{
	"host":                      {key: "host", kind: text},
	"port":                      {key: "port", kind: text},
	"load_balance_hosts":        {key: "load_balance_hosts", kind: text},
	"dbname":                    {key: "dbname", kind: text},
	"user":                      {key: "user", kind: text},
	"password":                  {key: "password", kind: secret},
	"auth_user":                 {key: "auth_user", kind: text},
	"auth_query":                {key: "auth_query", kind: text},
	"auth_dbname":               {key: "auth_dbname", kind: text},
	"client_encoding":           {key: "client_encoding", kind: text},
	"connect_query":             {key: "connect_query", kind: text},
	"datestyle":                 {key: "datestyle", kind: text},
	"timezone":                  {key: "timezone", kind: text},
	"pool_mode":                 {key: "pool_mode", kind: text},
	"pool_size":                 {key: "pool_size", kind: number},
	"min_pool_size":             {key: "min_pool_size", kind: number},
	"reserve_pool":              {key: "reserve_pool_size", kind: number},
	"reserve_pool_size":         {key: "reserve_pool_size", kind: number},
	"max_db_connections":        {key: "max_db_connections", kind: number},
	"max_db_client_connections": {key: "max_db_client_connections", kind: number},
	"server_lifetime":           {key: "server_lifetime", kind: seconds},
}

// peerSettings are those of a line of [peers], below pooler.peers.ID.
var peerSettings = map[string]setting{
	"host":      {key: "host", kind: text},
	"port":      {key: "port", kind: number},
	"pool_size": {key: "pool_size", kind: number},
}

// userSettings are those of a line of [users], below pooler.users.NAME.
var userSettings = map[string]setting{
	"pool_mode":                   {key: "pool_mode", kind: text},
	"pool_size":                   {key: "pool_size", kind: number},
	"reserve_pool_size":           {key: "reserve_pool_size", kind: number},
	"max_user_connections":        {key: "max_user_connections", kind: number},
	"max_user_client_connections": {key: "max_user_client_connections", kind: number},
	"query_timeout":               {key: "query_timeout", kind: seconds},
	"query_wait_timeout":          {key: "query_wait_timeout", kind: seconds},
	"transaction_timeout":         {key: "transaction_timeout", kind: seconds},
	"idle_transaction_timeout":    {key: "idle_transaction_timeout", kind: seconds},
	"client_idle_timeout":         {key: "client_idle_timeout", kind: seconds},
}
