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

//! dfsctl lock: runs a command while raftd keeps a lock of a file for it, on
//! all nodes.  The lock lives as long as the connection.  Runs in dfsctl.

#![forbid(unsafe_code)]

use crate::{ask, getopt, narrow, Answer, Channel};
use common::ctl::{CtlMount, CtlRep, CtlReq, CtlResult};
use common::fs::FsError;
use common::imsg::{ImsgError, ReadStatus};
use common::log_warnx;
use common::proc::{self, Pid};
use common::sys::poll::{self, PollFd, PollFlags};
use common::sys::signal::{Signal, Signals};
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

/// As sysexits(3) has them.
const EX_USAGE: u8 = 64;
const EX_NOINPUT: u8 = 66;
const EX_UNAVAILABLE: u8 = 69;
const EX_SOFTWARE: u8 = 70;
const EX_OSERR: u8 = 71;
const EX_TEMPFAIL: u8 = 75;
const EX_NOPERM: u8 = 77;

/// Who does not want to wait is answered by then, or there is no quorum.
const ANSWER_MAX: Duration = Duration::from_secs(30);

const FENCE: &str = "DFSD_LOCK_FENCE";

/// dfsctl lock [-w seconds] path command [argument ...]
#[derive(Debug, PartialEq, Eq)]
pub struct Lock {
    path: PathBuf,
    command: Vec<String>,
    wait: Option<Duration>,
}

pub fn usage() -> ExitCode {
    eprintln!("usage: dfsctl lock [-w seconds] path command [argument ...]");
    ExitCode::from(EX_USAGE)
}

pub fn unavailable() -> ExitCode {
    ExitCode::from(EX_UNAVAILABLE)
}

pub fn parse(words: &[String]) -> Option<Lock> {
    let args = getopt::getopt(words.iter().map(Into::into), "w:")?;
    let mut wait = None;
    for (_, seconds) in args.options {
        wait = Some(Duration::from_secs(seconds.parse::<u32>().ok()?.into()));
    }
    let (path, command) = args.operands.split_first()?;
    if path.is_empty() || command.is_empty() {
        return None;
    }
    let command = command.to_vec();
    let path = PathBuf::from(path);
    Some(Lock {
        path,
        command,
        wait,
    })
}

/// Without `.`, `..` and what is relative, by its words alone.
fn absolute(path: &Path) -> Option<PathBuf> {
    let from = match path.is_absolute() {
        true => PathBuf::from("/"),
        false => std::env::current_dir().ok()?,
    };
    let mut out = from;
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => drop(out.pop()),
            _ => {}
        }
    }
    Some(out)
}

/// Where the path leads on this system, if that is there: the file, or at least
/// the directory for it.
fn real(path: &Path) -> Option<PathBuf> {
    let parent = || Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(parent)
}

/// What raftd shall look for: where the path leads, if that is below a mount;
/// any other path is one of the tree, where this system's links mean nothing.
fn wanted(words: PathBuf, real: Option<PathBuf>, mounts: &[CtlMount]) -> PathBuf {
    let is_below = |path: &PathBuf| mounts.iter().any(|mount| path.starts_with(&mount.point));
    real.filter(is_below).unwrap_or(words)
}

/// Why the command does not run.
fn refused(result: CtlResult) -> u8 {
    match result {
        CtlResult::Permission => EX_NOPERM,
        CtlResult::Lock(FsError::WouldBlock) => EX_TEMPFAIL,
        CtlResult::Lock(FsError::NotFound | FsError::NotDir | FsError::NameTooLong) => EX_NOINPUT,
        _ => EX_UNAVAILABLE,
    }
}

impl Lock {
    /// Asks, waits, runs the command; its exit status, or why not.
    pub fn run(&self, channel: &mut Channel, stream: &UnixStream, socket: &str) -> ExitCode {
        let shown = self.path.display();
        let Some(path) = absolute(&self.path) else {
            log_warnx!("dfsctl: {shown}: no current directory");
            return ExitCode::from(EX_NOINPUT);
        };
        let real = real(&path);
        narrow("stdio proc exec");
        let fence = match self.acquire(channel, path, real) {
            Ok(Ok(fence)) => fence,
            Ok(Err(result)) => {
                log_warnx!("dfsctl: {shown}: {result}");
                return ExitCode::from(refused(result));
            }
            Err(e) => {
                log_warnx!("dfsctl: {socket}: {}", common::log::reason(&e));
                return ExitCode::from(EX_UNAVAILABLE);
            }
        };
        let signals = [
            Signal::SIGCHLD,
            Signal::SIGHUP,
            Signal::SIGINT,
            Signal::SIGTERM,
        ];
        let mut signals = match Signals::new(&signals) {
            Ok(signals) => signals,
            Err(e) => {
                log_warnx!("dfsctl: signals: {}", common::log::reason(&e));
                return ExitCode::from(EX_OSERR);
            }
        };
        let mut running = match Running::start(&self.command, fence) {
            Ok(running) => running,
            Err(e) => {
                let name = self.command.first().map_or("", String::as_str);
                log_warnx!("dfsctl: {name}: {}", common::log::reason(&e));
                return ExitCode::from(EX_OSERR);
            }
        };
        running.wait(&mut signals, channel, stream, &shown.to_string())
    }

    /// The fencing number.
    fn acquire(
        &self,
        channel: &mut Channel,
        words: PathBuf,
        real: Option<PathBuf>,
    ) -> Result<Result<u64, CtlResult>, ImsgError> {
        let mounts = match ask(channel, &CtlReq::ShowMounts)? {
            Answer::Records(records) => records.mounts,
            Answer::Result(result) => return Ok(Err(result)),
            Answer::Closed => return Ok(Err(CtlResult::Failed)),
        };
        let path = wanted(words, real, &mounts).into_os_string();
        let Ok(path) = path.into_string() else {
            return Ok(Err(CtlResult::Lock(FsError::NotFound)));
        };
        let pid = std::process::id();
        let wait = self.wait != Some(Duration::ZERO);
        channel.compose(&CtlReq::Lock { path, pid, wait }, 0, None, &[])?;
        channel.flush_blocking()?;
        let limit = match wait {
            true => self.wait,
            false => Some(ANSWER_MAX),
        };
        let until = limit.map(|limit| Instant::now() + limit);
        loop {
            if let Some(imsg) = channel.get()? {
                return Ok(match imsg.msg {
                    CtlRep::Locked(fence) => Ok(fence),
                    CtlRep::Result(result) => Err(result),
                    _ => Err(CtlResult::Failed),
                });
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if !channel.wait_readable(left)? {
                return Ok(Err(match wait {
                    true => CtlResult::Lock(FsError::WouldBlock),
                    false => CtlResult::Lock(FsError::NoQuorum),
                }));
            }
            if channel.read()? == ReadStatus::Closed {
                return Ok(Err(CtlResult::Failed));
            }
        }
    }
}

/// The command, and whether it is told everything by us.
struct Running {
    child: Child,
    /// In a process group of its own; not at a terminal, where that would be
    /// in the background and stopped when it reads.
    apart: bool,
    lost: bool,
}

impl Running {
    fn start(words: &[String], fence: u64) -> std::io::Result<Running> {
        let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
        let apart = !(stdin.is_terminal() || stdout.is_terminal() || stderr.is_terminal());
        let (name, args) = words.split_first().ok_or(std::io::ErrorKind::NotFound)?;
        let mut command = Command::new(name);
        command.args(args).env(FENCE, fence.to_string());
        if apart {
            command.process_group(0);
        }
        let child = command.spawn()?;
        let lost = false;
        Ok(Running { child, apart, lost })
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id() as i32;
        let to = if self.apart { -pid } else { pid };
        // One that is stopped hears nothing.  It may have ended.
        for signal in [signal, Signal::SIGCONT] {
            let _ = proc::kill(Pid::from_raw(to), signal);
        }
    }

    fn wait(
        &mut self,
        signals: &mut Signals,
        channel: &mut Channel,
        stream: &UnixStream,
        path: &str,
    ) -> ExitCode {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return self.exit_code(status),
                Ok(None) => {}
                Err(e) => {
                    log_warnx!("dfsctl: wait: {}", common::log::reason(&e));
                    return ExitCode::from(EX_OSERR);
                }
            }
            if !self.lost && is_lost(channel) {
                self.lost = true;
                log_warnx!("dfsctl: {path}: lock lost");
                self.signal(Signal::SIGTERM);
            }
            let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            if !self.lost {
                fds.push(PollFd::new(stream.as_fd(), PollFlags::POLLIN));
            }
            if let Err(e) = poll::poll(&mut fds, None) {
                log_warnx!("dfsctl: poll: {}", common::log::reason(&e));
            }
            drop(fds);
            for signal in signals.take() {
                match signal {
                    Signal::SIGCHLD => {}
                    // The terminal has told the command itself.
                    Signal::SIGINT if !self.apart => {}
                    signal => self.signal(signal),
                }
            }
        }
    }

    fn exit_code(&self, status: ExitStatus) -> ExitCode {
        if self.lost {
            return ExitCode::from(EX_SOFTWARE);
        }
        let code = match (status.code(), status.signal()) {
            (Some(code), _) => code,
            (None, Some(signal)) => 128 + signal,
            (None, None) => EX_SOFTWARE.into(),
        };
        ExitCode::from(code as u8)
    }
}

/// Whatever raftd says now, and its end, means that.
fn is_lost(channel: &mut Channel) -> bool {
    let said = |channel: &mut Channel| !matches!(channel.get(), Ok(None));
    said(channel)
        || match channel.read() {
            Ok(ReadStatus::Closed) | Err(_) => true,
            Ok(_) => said(channel),
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::conf::MountId;
    use common::ctl::MountState;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|w| w.to_string()).collect()
    }

    #[test]
    fn arguments() {
        let lock = parse(&words(&["-w", "5", "/a", "ls", "-l"])).unwrap();
        assert_eq!(lock.wait, Some(Duration::from_secs(5)));
        assert_eq!(lock.command, ["ls", "-l"]);
        assert_eq!(parse(&words(&["/a", "ls"])).unwrap().wait, None);
        for bad in [
            &["/a"][..],
            &[],
            &["-w", "x", "/a", "ls"],
            &["-w", "-1", "/a", "ls"],
            &["-x", "/a", "ls"],
            &["", "ls"],
        ] {
            assert_eq!(parse(&words(bad)), None, "{bad:?}");
        }
    }

    #[test]
    fn paths() {
        let mount = |point: &str, subtree: &str| CtlMount {
            id: MountId(1),
            point: point.into(),
            subtree: subtree.into(),
            read_only: false,
            open: 0,
            state: MountState::Serving,
        };
        let mounts = [mount("/var/www", "/www"), mount("/data", "/")];
        for (path, want) in [
            ("/var/www/a/b", "/var/www/a/b"),
            ("/var/www/./a/../c", "/var/www/c"),
            ("/../..", "/"),
        ] {
            let path = absolute(Path::new(path)).unwrap();
            assert_eq!(path, Path::new(want));
        }
        for (real, want) in [
            (Some("/data/x"), "/data/x"),
            (Some("/datax"), "/words"),
            (None, "/words"),
        ] {
            let found = wanted("/words".into(), real.map(PathBuf::from), &mounts);
            assert_eq!(found, Path::new(want));
        }
        assert!(absolute(Path::new("x")).unwrap().is_absolute());
    }
}
