package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"pitr/internal/monitor"
	"pitr/pooler"
	"pitr/pooler/pool"
)

func poolerCommand(app *app) *cobra.Command {
	return &cobra.Command{
		Use:   "pooler",
		Short: "Multiplex many client connections onto a few server connections",
		Long:  "Listens on pooler.listen and lends server connections to clients. SIGTERM drains: open transactions may end within pooler.drain_timeout.\n\n" + exitHelp,
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return runPooler(cmd.Context(), app) },
	}
}

func runPooler(ctx context.Context, app *app) error {
	cfg, log, err := app.load()
	if err != nil {
		return err
	}
	p, err := pooler.New(*cfg, log)
	if err != nil {
		return &usageError{err}
	}
	if err := p.Listen(); err != nil {
		p.Close()
		return err
	}
	log.Info("pooler started", "version", version, "pool_mode", cfg.Pooler.PoolMode, "default_pool_size", cfg.Pooler.DefaultPoolSize)
	return withMonitor(ctx, monitor.Options{
		Address: cfg.HTTP.Pooler, Log: log, Ready: p.Ready,
		Metrics: func() []monitor.Metric { return poolerMetrics(p.Stats()) },
	}, p.Run)
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
		"auth.query_cache_max": st.Limits.AuthQueryCacheMax,
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
		metric(monitor.Gauge, "pitr_pool_size", "Server connections that the pool may have.", float64(st.Size)),
		metric(monitor.Gauge, "pitr_servers_active", "Server connections that are lent to clients.", float64(st.Active)),
		metric(monitor.Gauge, "pitr_servers_idle", "Server connections that nobody uses.", float64(st.Idle)),
		metric(monitor.Gauge, "pitr_servers_cleaning", "Server connections that are being made clean, or wait for a cancel request.", float64(st.Cleaning)),
		metric(monitor.Gauge, "pitr_servers_connecting", "Server connections that are being made.", float64(st.Connecting)),
		metric(monitor.Gauge, "pitr_pool_clients_waiting", "Clients that wait for a connection of this pool.", float64(st.Waiting)),
		metric(monitor.Gauge, "pitr_pool_max_wait_seconds", "How long the first of them has been waiting.", st.MaxWait.Seconds()),
		metric(monitor.Counter, "pitr_queries_total", "Queries that ended.", float64(st.Queries)),
		metric(monitor.Counter, "pitr_transactions_total", "Transactions that ended.", float64(st.Transactions)),
	}
}
