package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const demoConfig = `cluster: demo
postgres:
  dsn: postgres://%[1]s@127.0.0.1:%[3]d/postgres?sslmode=disable&password=%[2]s
pooler:
  listen: [127.0.0.1:%[4]d]
  default_pool_size: %[5]d
  users: {%[1]s: {password: %[2]s}}
archive:
  store: %[6]s
backup:
  schedule: ""
http:
  pooler: 127.0.0.1:%[7]d
  archiver: 127.0.0.1:%[8]d
log:
  level: warn
`

// choosePorts takes free loopback ports. They are released before they are used: somebody else could take one, and the demo would
// say so and fail.
func (d *demo) choosePorts() error {
	var listeners []net.Listener
	for _, port := range []*int{&d.ports.postgres, &d.ports.pooler, &d.ports.archiverHTTP, &d.ports.poolerHTTP, &d.ports.s3, &d.ports.restored} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		listeners = append(listeners, listener)
		*port = listener.Addr().(*net.TCPAddr).Port
	}
	var errs []error
	for _, listener := range listeners {
		errs = append(errs, listener.Close())
	}
	return errors.Join(errs...)
}

// startServices starts the store, the archiver and the pooler, each a process of its own, and takes a base backup.
func (d *demo) startServices(ctx context.Context) error {
	store := "file://" + filepath.Join(d.dir, "repository")
	if d.flags.store == "s3" {
		var err error
		if store, err = d.startS3(ctx); err != nil {
			return err
		}
	}
	d.config = filepath.Join(d.dir, "pitr.yaml")
	text := fmt.Sprintf(demoConfig, demoSuperuser, demoPassword, d.ports.postgres, d.ports.pooler, demoPoolSize, store, d.ports.poolerHTTP, d.ports.archiverHTTP)
	if err := os.WriteFile(d.config, []byte(text), 0o600); err != nil {
		return err
	}
	if err := d.install.Own(d.config); err != nil {
		return err
	}
	for _, service := range []struct {
		name string
		port int
	}{{"archiver", d.ports.archiverHTTP}, {"pooler", d.ports.poolerHTTP}} {
		begin := time.Now()
		if err := d.spawn(ctx, service.name, d.bin, "-c", d.config, service.name); err != nil {
			return err
		}
		if err := waitHTTP(ctx, fmt.Sprintf("http://127.0.0.1:%d/readyz", service.port)); err != nil {
			return fmt.Errorf("wait for the %s: %w; its log: %s", service.name, err, d.logTail(service.name))
		}
		d.step(begin, "started pitr %s, store %s", service.name, d.flags.store)
	}
	begin := time.Now()
	out, err := d.pitr(ctx, "backup")
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	fields := strings.Fields(lines[len(lines)-1])
	d.step(begin, "took base backup %s: %s %s, stored as %s %s", fields[0], fields[3], fields[4], fields[5], fields[6])
	return nil
}

// startS3 runs versitygw on a directory.
func (d *demo) startS3(ctx context.Context) (string, error) {
	begin := time.Now()
	bin := os.Getenv("PITR_VERSITYGW")
	if bin == "" {
		var err error
		if bin, err = exec.LookPath("versitygw"); err != nil {
			return "", fmt.Errorf("no S3 server: `make demo STORE=s3` installs versitygw: %w", err)
		}
	}
	reachable := filepath.Join(d.dir, "versitygw")
	content, err := os.ReadFile(bin)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(reachable, content, 0o755); err != nil {
		return "", err
	}
	d.env = []string{"AWS_ACCESS_KEY_ID=demo", "AWS_SECRET_ACCESS_KEY=" + demoPassword, "ROOT_ACCESS_KEY=demo", "ROOT_SECRET_KEY=" + demoPassword}
	address := fmt.Sprintf("127.0.0.1:%d", d.ports.s3)
	if err := d.spawn(ctx, "versitygw", reachable, "--port", address, "posix", filepath.Join(d.dir, "s3")); err != nil {
		return "", err
	}
	if err := waitHTTP(ctx, "http://"+address+"/"); err != nil {
		return "", fmt.Errorf("wait for versitygw: %w; its log: %s", err, d.logTail("versitygw"))
	}
	d.step(begin, "started versitygw, an S3 server, on %s", address)
	return "s3://bucket/demo?endpoint=http://" + address + "&region=us-east-1&path_style=true", nil
}

// spawn starts a process and sees to it that it is stopped with SIGTERM.
func (d *demo) spawn(ctx context.Context, name, bin string, args ...string) error {
	cmd := d.install.Command(context.WithoutCancel(ctx), bin, args...)
	cmd.Env = append(cmd.Env, d.env...)
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	log, err := os.Create(filepath.Join(d.dir, name+".log"))
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = log, log
	err = errors.Join(cmd.Start(), log.Close())
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	d.onStop(func(ctx context.Context) error {
		begin := time.Now()
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		select {
		case <-ended:
			d.step(begin, "stopped %s", name)
			return nil
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s did not stop: %w", name, ctx.Err()), cmd.Process.Kill())
		}
	})
	return nil
}

// pitr runs one of our own commands to its end and returns what it printed.
func (d *demo) pitr(ctx context.Context, args ...string) (string, error) {
	cmd := d.install.Command(ctx, d.bin, append([]string{"-c", d.config}, args...)...)
	cmd.Env = append(cmd.Env, d.env...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("pitr %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

func (d *demo) logTail(name string) string {
	content, err := os.ReadFile(filepath.Join(d.dir, name+".log"))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(content[max(0, len(content)-2000):]))
}

// Waiting for a service.
const (
	servicePoll    = 50 * time.Millisecond
	serviceTimeout = 30 * time.Second
)

// waitHTTP waits until an address answers with something other than "unavailable".
func waitHTTP(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, serviceTimeout)
	defer cancel()
	ticker := time.NewTicker(servicePoll)
	defer ticker.Stop()
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err == nil {
			status := response.StatusCode
			if err := response.Body.Close(); err != nil {
				return err
			}
			if status != http.StatusServiceUnavailable {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}
