package world

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Every app here comes from a Debian package and runs with the options that its
// own documentation gives for a port on loopback; none is made for Adit.

// dir makes a directory of the world's own.
func (w *World) dir(name string, mode os.FileMode) string {
	w.T.Helper()
	dir := filepath.Join(w.Dir, name)
	if err := os.MkdirAll(dir, mode); err != nil {
		w.T.Fatal(err)
	}
	return dir
}

// WriteFile writes a file of the world's own and returns its path.
func (w *World) WriteFile(name, text string) string {
	w.T.Helper()
	path := filepath.Join(w.Dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.T.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		w.T.Fatal(err)
	}
	return path
}

// Program returns the path of a program that the tests install, or fails the test
// naming its Debian package.
func (w *World) Program(name, pkg string, more ...string) string {
	w.T.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, pattern := range more {
		if found, err := filepath.Glob(pattern); err == nil && len(found) > 0 {
			return found[len(found)-1]
		}
	}
	w.T.Fatalf("%s is not installed; scripts/test installs it (Debian package %s)", name, pkg)
	return ""
}

// Jupyter starts a Jupyter notebook server and returns its port and its token.
func (w *World) Jupyter() (port int, token string) {
	w.T.Helper()
	port, token = w.FreePort(), "5e1f0a9c4b7d2836"
	home := w.dir("jupyter", 0o755)
	args := []string{"notebook", "--no-browser", "--port=" + strconv.Itoa(port), "--NotebookApp.token=" + token, "--notebook-dir=" + home}
	if os.Geteuid() == 0 {
		args = append(args, "--allow-root")
	}
	w.StartIn(home, "jupyter", []string{"HOME=" + home, "JUPYTER_RUNTIME_DIR=" + home + "/runtime"}, w.Program("jupyter", "jupyter-notebook"), args...)
	w.WaitPort(port, 60*time.Second)
	return port, token
}

// Nginx starts nginx serving a directory and returns its port.
func (w *World) Nginx(root string) int {
	w.T.Helper()
	port, dir := w.FreePort(), w.dir("nginx", 0o755)
	conf := w.WriteFile("nginx/nginx.conf", fmt.Sprintf(`daemon off; pid %[1]s/pid; error_log stderr; worker_processes 1;
events { worker_connections 512; }
http {
  include /etc/nginx/mime.types; access_log off; sendfile on;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
  server { listen 127.0.0.1:%[2]d; root %[3]s; gzip on; gzip_types *; }
}
`, dir, port, root))
	user := ""
	if os.Geteuid() == 0 {
		user = "user root; "
	}
	w.Start("nginx", nil, w.Program("nginx", "nginx-light", "/usr/sbin/nginx"), "-c", conf, "-g", user+"master_process off;")
	w.WaitPort(port, 10*time.Second)
	return port
}

// Prometheus starts a Prometheus server and returns its port.
func (w *World) Prometheus() int {
	w.T.Helper()
	port, dir := w.FreePort(), w.dir("prometheus", 0o755)
	conf := w.WriteFile("prometheus/prometheus.yml", fmt.Sprintf("global: {scrape_interval: 1s}\nscrape_configs:\n  - job_name: self\n    static_configs: [{targets: ['127.0.0.1:%d']}]\n", port))
	w.Start("prometheus", nil, w.Program("prometheus", "prometheus"), "--config.file="+conf, "--storage.tsdb.path="+dir+"/data",
		"--web.listen-address=127.0.0.1:"+strconv.Itoa(port))
	w.WaitPort(port, 20*time.Second)
	return port
}

// VNC starts a real X server with VNC, and returns the ports of VNC and of noVNC's
// own web server (websockify) in front of it.
func (w *World) VNC() (vnc, web int) {
	w.T.Helper()
	vnc, web = w.FreePort(), w.FreePort()
	display := ":" + strconv.Itoa(1000+vnc%20000)
	w.Start("xvnc", nil, w.Program("Xvnc", "tigervnc-standalone-server"), display, "-rfbport", strconv.Itoa(vnc), "-localhost", "-SecurityTypes", "None", "-geometry", "640x480", "-nolisten", "tcp")
	w.WaitPort(vnc, 20*time.Second)
	w.Start("websockify", nil, w.Program("websockify", "websockify"), "--web", "/usr/share/novnc", "127.0.0.1:"+strconv.Itoa(web), "127.0.0.1:"+strconv.Itoa(vnc))
	w.WaitPort(web, 20*time.Second)
	return vnc, web
}

// SSHD starts an SSH server and returns its port and the arguments with which ssh
// logs in there without asking.
func (w *World) SSHD() (port int, args []string) {
	w.T.Helper()
	port = w.FreePort()
	dir := w.dir("sshd", 0o700)
	keygen := w.Program("ssh-keygen", "openssh-client")
	for _, name := range []string{"host", "user"} {
		w.Run(nil, keygen, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name))
	}
	pub, err := os.ReadFile(filepath.Join(dir, "user.pub"))
	if err != nil {
		w.T.Fatal(err)
	}
	keys := w.WriteFile("sshd/authorized_keys", string(pub))
	if os.Geteuid() == 0 {
		_ = os.MkdirAll("/run/sshd", 0o755) // sshd insists on its directory
	}
	conf := w.WriteFile("sshd/config", fmt.Sprintf("Port %d\nListenAddress 127.0.0.1\nHostKey %s/host\nAuthorizedKeysFile %s\nPidFile none\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\nSubsystem sftp internal-sftp\n", port, dir, keys))
	w.Start("sshd", nil, w.Program("sshd", "openssh-server", "/usr/sbin/sshd"), "-D", "-e", "-f", conf)
	w.WaitPort(port, 10*time.Second)
	me, err := user.Current()
	if err != nil {
		w.T.Fatal(err)
	}
	return port, []string{"-F", "none", "-i", filepath.Join(dir, "user"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "BatchMode=yes", "-l", me.Username}
}

// as makes a command run as an unprivileged user where the tests run as root and
// the program refuses that, and gives it the directory.
func (w *World) as(name, dir string) []string {
	w.T.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		w.T.Fatalf("user %s: %v", name, err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	// The test's own directories are closed to others; these hold no secret.
	for d := dir; len(d) > len(os.TempDir()); d = filepath.Dir(d) {
		if st, err := os.Stat(d); err == nil {
			_ = os.Chmod(d, st.Mode().Perm()|0o111)
		}
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		w.T.Fatal(err)
	}
	return []string{w.Program("setpriv", "util-linux"), "--reuid=" + u.Uid, "--regid=" + u.Gid, "--clear-groups", "--"}
}

// Postgres starts a PostgreSQL server that trusts loopback and returns its port.
func (w *World) Postgres() int {
	w.T.Helper()
	port := w.FreePort()
	dir := w.dir("pg", 0o700)
	initdb := w.Program("initdb", "postgresql", "/usr/lib/postgresql/*/bin/initdb")
	server := filepath.Join(filepath.Dir(initdb), "postgres")
	pre := w.as("postgres", dir)
	env := []string{"LC_ALL=C.UTF-8", "HOME=" + dir}
	line := append(append([]string(nil), pre...), initdb, "-D", dir+"/data", "-U", "postgres", "--auth=trust", "--no-sync")
	w.Run(env, line[0], line[1:]...)
	line = append(append([]string(nil), pre...), server, "-D", dir+"/data", "-p", strconv.Itoa(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="+dir, "-c", "fsync=off")
	w.StartIn(dir, "postgres", env, line[0], line[1:]...)
	w.WaitPort(port, 30*time.Second)
	return port
}

// MariaDB starts a MariaDB server with a user "adit" (password "adit") and returns
// its port.
func (w *World) MariaDB() int {
	w.T.Helper()
	port := w.FreePort()
	dir := w.dir("maria", 0o700)
	pre := w.as("mysql", dir)
	line := append(append([]string(nil), pre...), w.Program("mariadb-install-db", "mariadb-server"), "--no-defaults", "--datadir="+dir+"/data", "--auth-root-authentication-method=normal", "--skip-test-db")
	w.Run([]string{"HOME=" + dir}, line[0], line[1:]...)
	init := w.WriteFile("maria/init.sql", "CREATE USER adit@localhost IDENTIFIED BY 'adit';\nGRANT ALL ON *.* TO adit@localhost;\nCREATE DATABASE adit;\n")
	line = append(append([]string(nil), pre...), w.Program("mariadbd", "mariadb-server", "/usr/sbin/mariadbd"), "--no-defaults", "--datadir="+dir+"/data", "--port="+strconv.Itoa(port), "--bind-address=127.0.0.1", "--socket="+dir+"/s", "--pid-file="+dir+"/pid", "--init-file="+init)
	w.StartIn(dir, "mariadb", []string{"HOME=" + dir}, line[0], line[1:]...)
	w.WaitPort(port, 60*time.Second)
	return port
}

// Redis starts a Redis server and returns its port.
func (w *World) Redis() int {
	w.T.Helper()
	port := w.FreePort()
	w.Start("redis", nil, w.Program("redis-server", "redis-server"), "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--save", "", "--dir", w.dir("redis", 0o755))
	w.WaitPort(port, 10*time.Second)
	return port
}

// Node starts a script of relay/e2e/apps with the port as its argument.
func (w *World) Node(script string, args ...string) *Process {
	w.T.Helper()
	dir := AppsDir(w)
	return w.StartIn(dir, script, nil, w.Program("node", "nodejs"), append([]string{script}, args...)...)
}

// AppsDir is the directory of the apps from npm, installed.
func AppsDir(w *World) string {
	w.T.Helper()
	dir, err := filepath.Abs("apps")
	if err != nil {
		w.T.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules")); err != nil {
		w.T.Fatalf("the apps from npm are not installed; scripts/test installs them (npm ci in %s)", strings.TrimPrefix(dir, filepath.Dir(dir)))
	}
	return dir
}

// Signal sends a signal to a process.
func (p *Process) Signal(s syscall.Signal) { _ = p.Cmd.Process.Signal(s) }
