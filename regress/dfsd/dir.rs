// Copyright (c) 2026 The dfsd authors
//
// Permission to use, copy, modify, and distribute this software for any
// purpose with or without fee is hereby granted, provided that the above
// copyright notice and this permission notice appear in all copies.
//
// THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES
// WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED WARRANTIES OF
// MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR
// ANY SPECIAL, DIRECT, INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES
// WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN
// ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF
// OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS SOFTWARE.

//! What the tests of the parent share: a directory with a configuration in
//! it, and dfsd run on it.

#![allow(dead_code)]

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::{chown, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Whatever is waited for takes less, or never comes.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Past libtest, which would keep it to itself.
pub fn skipped(test: &str, why: &str) {
    let _ = writeln!(io::stdout(), "SKIPPED: {test}: {why}");
}

/// Says so and is true when a test cannot run as this user.
pub fn skip_unless_root(test: &str) -> bool {
    let out = Command::new("id").arg("-u").output();
    let root = out.is_ok_and(|out| out.stdout == b"0\n");
    if !root {
        skipped(test, "needs root");
    }
    !root
}

pub fn have_user() -> bool {
    let out = Command::new("id").args(["-u", "_dfsd"]).output();
    out.is_ok_and(|out| out.status.success())
}

/// Where the built programs are.
pub fn bin() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_dfsd"))
        .parent()
        .expect("directory")
}

/// A node of its own in a directory that goes with the test.
pub struct Dir {
    pub path: PathBuf,
    pub port: u16,
}

impl Dir {
    /// With a data directory and a mount point as they should be, and nothing
    /// in the configuration that another test could have.
    pub fn new(test: &str) -> Dir {
        let name = format!("dfsd-{test}.{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).expect("mkdir");
        let path = path.canonicalize().expect("canonicalize");
        chmod(&path, 0o755);
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("port").port();
        let dir = Dir { path, port };
        fs::create_dir(dir.mnt()).expect("mkdir");
        dir.put("conf", &dir.conf());
        dir
    }

    pub fn mnt(&self) -> PathBuf {
        self.path.join("mnt")
    }

    pub fn socket(&self) -> PathBuf {
        self.path.join("sock")
    }

    pub fn data(&self) -> PathBuf {
        self.path.join("db")
    }

    pub fn conf(&self) -> String {
        let (port, path) = (self.port, self.path.display());
        format!(
            "cluster \"test\"\n\
             node 1\n\
             listen on 127.0.0.1 port {port}\n\
             data \"{path}/db\"\n\
             socket \"{path}/sock\"\n\
             peer 127.0.0.1 port {port} {{ id 1 }}\n\
             mount \"{path}/mnt\" {{ timeout 5 }}\n"
        )
    }

    pub fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, text).expect("write");
        chmod(&path, 0o600);
        path
    }

    /// dfsd in the foreground on this configuration, its programs in `libexec`.
    pub fn dfsd_with(&self, libexec: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dfsd"));
        command
            .arg("-d")
            .arg("-f")
            .arg(self.path.join("conf"))
            .env("DFSD_LIBEXEC", libexec)
            .stdin(Stdio::null());
        command
    }

    /// Runs dfsd, which must fail before it has started anything; what it
    /// says after the lines that each start has.
    pub fn error(&self) -> String {
        let out = self.dfsd_with(&self.path).output().expect("run");
        assert_eq!(out.status.code(), Some(1), "{}", text(&out));
        let all = text(&out);
        let line = all.lines().last().expect("a line");
        line.strip_prefix("dfsd: ").expect("dfsd:").to_string()
    }

    /// Whether something is mounted at a path, without touching it.
    pub fn is_mounted(point: &Path) -> bool {
        let table = Command::new("mount").output().expect("mount").stdout;
        let line = format!(" on {} type ", point.display());
        String::from_utf8_lossy(&table).contains(&line)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let mut rounds = 0;
        while Dir::is_mounted(&self.mnt()) && rounds < 8 {
            rounds += 1;
            let lazy = if cfg!(target_os = "linux") {
                "-l"
            } else {
                "-f"
            };
            let _ = Command::new("umount").arg(lazy).arg(self.mnt()).status();
        }
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Copies a program, for those to run who cannot get to where it was built.
/// Not here: what another thread forks meanwhile would have the copy open for
/// writing, and nobody can run it then.
pub fn copy_program(from: &str, to: &Path) {
    let status = Command::new("cp").arg(from).arg(to).status().expect("cp");
    assert!(status.success());
    chmod(to, 0o755);
}

pub fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

pub fn give_to_dfsd(path: &Path) {
    let number = |flag: &str| {
        let out = Command::new("id").args([flag, "_dfsd"]).output();
        let out = String::from_utf8(out.expect("id").stdout).expect("UTF-8");
        out.trim().parse().expect("number")
    };
    chown(path, Some(number("-u")), Some(number("-g"))).expect("chown");
}

pub fn text(out: &Output) -> String {
    String::from_utf8(out.stderr.clone()).expect("UTF-8")
}

/// A dfsd that runs; killed with the test if it still does.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
    pub log: Vec<String>,
}

impl Running {
    pub fn start(mut command: Command) -> Running {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("run");
        let stderr = child.stderr.take().expect("stderr");
        let (tx, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if tx.send(line).is_err() {
                    return;
                }
            }
        });
        let log = Vec::new();
        Running { child, lines, log }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line of the log that was not seen before.
    pub fn wait_for(&mut self, wanted: &str) -> String {
        let end = Instant::now() + LIMIT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.log.push(line.clone());
                    if line.contains(wanted) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    panic!("no \"{wanted}\" in\n{}", self.log.join("\n"))
                }
            }
        }
    }

    pub fn signal(&self, name: &str) {
        kill(self.pid(), name);
    }

    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the end of dfsd", || {
            status = self.child.try_wait().expect("wait");
            status.is_some()
        });
        status.expect("status")
    }

    /// The process ids of its children with that program name.
    pub fn children(&self, program: &str) -> Vec<u32> {
        let ppid = self.pid().to_string();
        let out = Command::new("ps")
            .args(["-A", "-o", "pid=,ppid=,comm="])
            .output()
            .expect("ps");
        let out = String::from_utf8_lossy(&out.stdout).into_owned();
        out.lines()
            .filter_map(|line| {
                let mut fields = line.split_whitespace();
                let (pid, parent, comm) = (fields.next()?, fields.next()?, fields.next()?);
                (parent == ppid && comm == program).then(|| pid.parse().ok())?
            })
            .collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Its children end when it does.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let rest: Vec<String> = self.lines.try_iter().collect();
            eprintln!("{}\n{}", self.log.join("\n"), rest.join("\n"));
        }
    }
}

pub fn kill(pid: u32, name: &str) {
    let status = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(pid.to_string())
        .status();
    assert!(status.expect("kill").success());
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "not in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
