package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"pitr/config"
	"pitr/internal/monitor"
	"pitr/pooler"
	"pitr/pooler/pool"
)

func poolerCommand(app *app) *cobra.Command {
	var ini string
	cmd := &cobra.Command{
		Use:   "pooler",
		Short: "Multiplex many client connections onto a few server connections",
		Long: "Listens on pooler.listen and lends server connections to clients. SIGTERM drains: open transactions may end within pooler.drain_timeout. SIGHUP reads the configuration again.\n" +
			"Started under the name pgbouncer, the program takes PgBouncer's options and signals.\n\n" + exitHelp,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opt := poolerOptions{load: app.load}
			if ini != "" {
				opt.load = func() (*config.Config, *slog.Logger, error) { return loadINI(ini) }
			}
			cfg, log, err := opt.load()
			if err != nil {
				return err
			}
			return servePooler(cmd.Context(), cfg, log, opt)
		},
	}
	cmd.Flags().StringVar(&ini, "pgbouncer-ini", "", "run from a configuration of PgBouncer instead of a pitr.yaml")
	return cmd
}

// poolerOptions are what differs when the program was started as PgBouncer.
type poolerOptions struct {
	load      func() (*config.Config, *slog.Logger, error)                  // reads the configuration, at first and again
	listening func() error                                                  // is told that clients can connect; may be nil
	signals   func(ctx context.Context, p *pooler.Pooler, log *slog.Logger) // deals with signals until ctx ends; may be nil
}

func servePooler(ctx context.Context, cfg *config.Config, log *slog.Logger, opt poolerOptions) error {
	p, err := pooler.New(*cfg, log)
	if err != nil {
		return &usageError{err}
	}
	lent, err := activatedSockets()
	if err != nil {
		p.Close()
		return err
	}
	p.ListenOn(lent)
	if err := p.Listen(); err != nil {
		p.Close()
		return err
	}
	p.ReloadWith(func() (*config.Config, error) {
		changed, _, err := opt.load()
		return changed, err
	})
	p.Tell(poolerEvents(log))
	watch := monitor.Options{
		Address: cfg.HTTP.Pooler, Log: log, Ready: p.Ready,
		Metrics: func() []monitor.Metric { return poolerMetrics(p.Stats()) },
	}
	if watch.Address != "" {
		if watch.Listener, err = p.ListenBeside(watch.Address); err != nil {
			p.Close()
			return fmt.Errorf("http.pooler: %w", err)
		}
	}
	ctx, stop := context.WithCancel(ctx)
	var reloads sync.WaitGroup
	defer reloads.Wait()
	defer stop()
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	reloads.Go(func() { reloadOn(ctx, hangups, p, log) })
	if opt.signals != nil {
		reloads.Go(func() { opt.signals(ctx, p, log) })
	}
	if opt.listening != nil {
		if err := opt.listening(); err != nil {
			p.Close()
			return err
		}
	}
	log.Info("pooler started", "version", version, "pool_mode", cfg.Pooler.PoolMode, "default_pool_size", cfg.Pooler.DefaultPoolSize)
	return withMonitor(ctx, watch, p.Run)
}

// reloadOn reads the configuration again at each signal. What cannot be used changes nothing.
func reloadOn(ctx context.Context, hangups <-chan os.Signal, p *pooler.Pooler, log *slog.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		if changes, err := p.Reload(); err != nil {
			log.Error("configuration not reloaded", "error", err)
		} else {
			log.Info("configuration reloaded", "changes", len(changes))
		}
	}
}

func poolerMetrics(st pooler.Stats) []monitor.Metric {
	gauge := func(name, help string, value int) monitor.Metric {
		return monitor.Metric{Name: name, Help: help, Value: float64(value)}
	}
	counter := func(name, help string, value uint64) monitor.Metric {
		return monitor.Metric{Name: name, Help: help, Kind: monitor.Counter, Value: float64(value)}
	}
	metrics := []monitor.Metric{
		gauge("pitr_clients", "Clients that are logged in.", st.Clients),
		gauge("pitr_clients_active", "Clients that hold a server connection.", st.ClientsActive),
		gauge("pitr_clients_waiting", "Clients that wait for a server connection.", st.ClientsWaiting),
		gauge("pitr_clients_login", "Connections that have not logged in yet.", st.ClientsLogin),
		gauge("pitr_replication_connections", "Connections in replication mode.", st.Replications),
		gauge("pitr_max_client_conn", "The setting pooler.max_client_conn.", st.MaxClientConn),
		counter("pitr_client_bytes_received_total", "Bytes from clients.", st.BytesFromClients),
		counter("pitr_client_bytes_sent_total", "Bytes to clients.", st.BytesToClients),
		counter("pitr_logins_total", "Logins of clients that succeeded.", st.Logins),
		counter("pitr_login_failures_total", "Logins of clients that failed.", st.LoginFailures),
		counter("pitr_cancel_requests_total", "Cancel requests that were passed on.", st.CancelRequests),
		counter("pitr_servers_lost_total", "Server connections that ended while a client held them.", st.ServersLost),
	}
	for setting, hits := range map[string]uint64{
		"max_client_conn": st.Limits.MaxClientConn, "max_login_conn": st.Limits.MaxLoginConn, "max_pools": st.Limits.MaxPools,
		"max_cancel_requests": st.Limits.MaxCancelRequests, "max_pipeline_messages": st.Limits.MaxPipelineMessages,
		"max_parameter_sets": st.Limits.MaxParameterSets, "query_wait_timeout": st.Limits.QueryWaitTimeout, "client_write_timeout": st.Limits.ClientWriteTimeout,
		"max_client_notifications": st.Limits.MaxClientNotifications, "max_login_conn_per_address": st.Limits.MaxLoginConnAddress,
		"auth.query_cache_max":        st.Limits.AuthQueryCacheMax,
		"max_db_client_connections":   st.Limits.MaxDBClientConnections,
		"max_user_client_connections": st.Limits.MaxUserClientConnections, "query_timeout": st.Limits.QueryTimeout, "transaction_timeout": st.Limits.TransactionTimeout,
		"idle_transaction_timeout": st.Limits.IdleTransactionTimeout, "client_idle_timeout": st.Limits.ClientIdleTimeout, "max_db_connections": st.Limits.MaxDBConnections,
		"max_user_connections": st.Limits.MaxUserConnections, "max_replication_connections": st.Limits.MaxReplicationConnections, "server_connect_rate": st.Limits.ServerConnectRate,
	} {
		m := counter("pitr_limit_hits_total", "Times that a limit was reached, by its setting.", hits)
		m.Labels = map[string]string{"setting": setting}
		metrics = append(metrics, m)
	}
	for _, one := range st.Pools {
		metrics = append(metrics, poolMetrics(one, st.WaitBuckets)...)
	}
	return metrics
}

func pausedValue(paused bool) float64 {
	if paused {
		return 1
	}
	return 0
}

func poolMetrics(st pool.Stats, bounds []time.Duration) []monitor.Metric {
	labels := map[string]string{"database": st.Database, "user": st.User}
	metric := func(kind monitor.Kind, name, help string, value float64) monitor.Metric {
		return monitor.Metric{Kind: kind, Name: name, Help: help, Value: value, Labels: labels}
	}
	histogram := func(name, help string, bounds []time.Duration, counts []uint64, total time.Duration) monitor.Metric {
		m := metric(monitor.Histogram, name, help, 0)
		for _, bound := range bounds {
			m.Bounds = append(m.Bounds, bound.Seconds())
		}
		m.Counts, m.Sum = counts, total.Seconds()
		return m
	}
	queries, transactions := st.QueryTimes, st.TransactionTimes
	return []monitor.Metric{
		histogram("pitr_client_wait_seconds", "How long clients waited for a server connection.", bounds, st.Waits[:], st.WaitTotal),
		histogram("pitr_query_seconds", "How long queries took, without the wait for a server connection.", pool.DurationBuckets[:], queries.Buckets[:], queries.Total),
		histogram("pitr_transaction_seconds", "How long transactions held a server connection.", pool.DurationBuckets[:], transactions.Buckets[:], transactions.Total),
		histogram("pitr_server_connect_seconds", "How long connecting and logging in to Postgres took, where it succeeded.", pool.DurationBuckets[:], st.ConnectTimes.Buckets[:], st.ConnectTimes.Total),
		histogram("pitr_client_login_seconds", "How long clients took from their startup packet until they were in.", pool.DurationBuckets[:], st.LoginTimes.Buckets[:], st.LoginTimes.Total),
		metric(monitor.Gauge, "pitr_pool_size", "Server connections that the pool may have.", float64(st.Size)),
		metric(monitor.Gauge, "pitr_servers_active", "Server connections that are lent to clients.", float64(st.Active)),
		metric(monitor.Gauge, "pitr_servers_idle", "Server connections that nobody uses.", float64(st.Idle)),
		metric(monitor.Gauge, "pitr_servers_used", "Server connections that nobody has used for server_check_delay, so that they are tested first.", float64(st.Used)),
		metric(monitor.Gauge, "pitr_pool_clients", "Clients of the pool, those that wait included.", float64(st.Clients)),
		metric(monitor.Gauge, "pitr_pool_paused", "1 while an operator has the pool paused.", pausedValue(st.Paused)),
		metric(monitor.Gauge, "pitr_servers_cleaning", "Server connections that are being made clean, or wait for a cancel request.", float64(st.Cleaning)),
		metric(monitor.Gauge, "pitr_servers_connecting", "Server connections that are being made.", float64(st.Connecting)),
		metric(monitor.Gauge, "pitr_pool_clients_waiting", "Clients that wait for a connection of this pool.", float64(st.Waiting)),
		metric(monitor.Gauge, "pitr_pool_max_wait_seconds", "How long the first of them has been waiting.", st.MaxWait.Seconds()),
		metric(monitor.Counter, "pitr_server_assignments_total", "Times that a client was given a server connection.", float64(st.Assignments)),
		metric(monitor.Counter, "pitr_server_connects_total", "Server connections that were made.", float64(st.Connects)),
		metric(monitor.Counter, "pitr_server_connect_failures_total", "Server connections that could not be made.", float64(st.ConnectFailures)),
		metric(monitor.Counter, "pitr_servers_closed_total", "Server connections that were closed, for whatever reason; the log tells which.", float64(st.Closed)),
		metric(monitor.Counter, "pitr_pool_bytes_received_total", "Bytes from clients of the pool.", float64(st.Traffic.Received)),
		metric(monitor.Counter, "pitr_pool_bytes_sent_total", "Bytes to clients of the pool.", float64(st.Traffic.Sent)),
		metric(monitor.Counter, "pitr_client_parses_total", "Statements that clients have prepared, by the protocol.", float64(st.Traffic.ClientParses)),
		metric(monitor.Counter, "pitr_server_parses_total", "Statements that were prepared on servers.", float64(st.Traffic.ServerParses)),
		metric(monitor.Counter, "pitr_binds_total", "Bind messages of clients.", float64(st.Traffic.Binds)),
		metric(monitor.Counter, "pitr_queries_total", "Queries that ended.", float64(st.Queries)),
		metric(monitor.Counter, "pitr_transactions_total", "Transactions that ended.", float64(st.Transactions)),
	}
}
