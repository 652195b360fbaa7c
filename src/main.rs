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

//! dfsd(8), the parent: reads dfsd.conf, binds, mounts, starts raftd and the
//! fused, passes descriptors, reaps.  It runs as root, in one thread, and never
//! accepts a connection, never reads what another machine or user has written,
//! never touches a mounted point.

#![forbid(unsafe_code)]

mod child;
mod fused;
mod getopt;
mod mount;
mod parse;
mod printconf;
mod raftd;
mod reload;
mod sock;

use child::Child;
use common::conf::{Conf, Mount, MountId, CONF_FILE};
use common::log::{self, reason};
use common::msg::{ParentToRaftd, RaftdToParent};
use common::proc::{self, Exit};
use common::sys::daemon::daemon;
use common::sys::mount::FUSE_DEVICE;
use common::sys::poll::{poll, PollFd, PollFlags};
use common::sys::privilege::User;
use common::sys::release;
use common::sys::signal::{Signal, Signals};
use common::sys::unveil::{unveil, unveil_lock};
use common::{fatal, fatalx, log_info, log_warnx};
use fused::Slot;
use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{chown, DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For all of a clean stop, in which raftd hands over the leadership and makes
/// its last checkpoint; rc.subr kills everything after 30 seconds.
const STOP_LIMIT: Duration = Duration::from_secs(25);
/// What the mounts have of it.
const STOP_MOUNTS_LIMIT: Duration = Duration::from_secs(5);

struct Options {
    debug: bool,
    configtest: bool,
    verbose: bool,
    file: PathBuf,
    macros: Vec<(String, String)>,
}

/// Root directory of each fused; nothing is ever in it.
const EMPTY: &str = "/var/empty";

/// How far a clean stop has come.
enum Stop {
    No,
    /// The mounts are detached, their fused end.
    Mounts {
        begun: Instant,
    },
    /// raftd knows.
    Raftd {
        kill_at: Instant,
    },
}

struct Parent {
    options: Options,
    conf: Conf,
    raftd: Child<ParentToRaftd, RaftdToParent>,
    ready: bool,
    mounts: BTreeMap<MountId, Slot>,
    /// The number of the next mount that a reload adds; none is used again.
    next_mount: u32,
    /// Configurations that raftd has not confirmed, and who waits for each.
    reloads: VecDeque<Option<u32>>,
    stop: Stop,
}

fn usage() -> ! {
    eprintln!("usage: dfsd [-dnVv] [-D macro=value] [-f file]");
    std::process::exit(1)
}

/// And what has to be installed where; "make install" asks.
fn version() -> ! {
    println!("dfsd {} {}", env!("CARGO_PKG_VERSION"), proc::LIBEXECDIR);
    std::process::exit(0)
}

fn options() -> Options {
    let mut options = Options {
        debug: false,
        configtest: false,
        verbose: false,
        file: CONF_FILE.into(),
        macros: Vec::new(),
    };
    let args = getopt::getopt(std::env::args_os().skip(1), "dD:f:nVv");
    let Some(args) = args.filter(|args| args.operands.is_empty()) else {
        usage();
    };
    for (option, value) in args.options {
        match option {
            'd' => options.debug = true,
            'D' => match value.split_once('=') {
                Some((name, value)) => options.macros.push((name.into(), value.into())),
                None => fatalx!("could not parse macro definition {value}"),
            },
            'f' => options.file = value.into(),
            'n' => options.configtest = true,
            'V' => version(),
            _ => options.verbose = true,
        }
    }
    options
}

fn main() {
    log::log_init("dfsd", true, false);
    let mut options = options();
    log::log_setverbose(options.verbose);

    let Ok(conf) = parse::parse_config(&options.file, &options.macros) else {
        std::process::exit(1);
    };
    if options.configtest {
        if options.verbose {
            print!("{}", printconf::print_config(&conf));
        } else {
            eprintln!("configuration OK");
        }
        return;
    }
    let user = match proc::check_privileges() {
        Ok(user) => user,
        Err(e) => fatalx!("{e}"),
    };
    // Before daemon(3), so that whoever starts it reads it.
    if let Err(e) = release::check() {
        fatalx!("{e}");
    }

    log::log_init("dfsd", options.debug, options.verbose);
    if !options.debug {
        // A reload reads it from another directory.
        match std::path::absolute(&options.file) {
            Ok(file) => options.file = file,
            Err(e) => fatal!(e, "{}", options.file.display()),
        }
        if let Err(e) = daemon() {
            fatal!(e, "daemon");
        }
    }
    log_info!("startup");

    let signals = [
        Signal::SIGCHLD,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGTERM,
    ];
    let signals = match Signals::new(&signals) {
        Ok(signals) => signals,
        Err(e) => fatal!(e, "signal"),
    };
    match start(options, conf, user) {
        Ok(parent) => parent.run(signals),
        Err(e) => fatalx!("{e}"),
    }
}

/// All that root is needed for.  raftd starts before anything is mounted, so
/// that nobody waits at a mount which has nothing behind it.
fn start(options: Options, conf: Conf, user: User) -> Result<Parent, String> {
    sock::check_running(&conf.socket)?;
    empty_dir().map_err(|e| format!("{EMPTY}: {e}"))?;
    data_dir(&conf.data, user).map_err(|e| format!("{}: {e}", conf.data.display()))?;
    for m in conf.mounts.iter().filter(|m| m.auto) {
        mount::check(&m.point).map_err(|e| format!("mount {}: {e}", m.point.display()))?;
    }
    let listener = sock::listener(conf.listen)?;
    let control = sock::control(&conf.socket)?;
    narrow(&conf, options.debug).map_err(|e| format!("unveil: {}", reason(&e)))?;

    let raftd = Child::start("raftd", options.debug).inspect_err(|_| remove_socket(&conf))?;
    let slot = |m: &Mount| (m.id, Slot::new(&m.point));
    let mut parent = Parent {
        raftd,
        ready: false,
        mounts: conf.mounts.iter().map(slot).collect(),
        next_mount: conf.mounts.iter().map(|m| m.id.0 + 1).max().unwrap_or(0),
        reloads: VecDeque::new(),
        stop: Stop::No,
        options,
        conf,
    };
    parent.send_config();
    parent.raftd.send(ParentToRaftd::Listener, Some(listener));
    parent.raftd.send(ParentToRaftd::ControlFd, Some(control));
    parent.raftd.send(ParentToRaftd::Startup, None);
    let auto = |m: &Mount| m.auto.then_some(m.id);
    let ids: Vec<MountId> = parent.conf.mounts.iter().filter_map(auto).collect();
    for id in ids {
        // A failure is in the log; the other mounts are served.
        let _ = parent.mount_start(id);
    }
    Ok(parent)
}

/// Not all systems have it.  What runs in it must find nothing there.
fn empty_dir() -> Result<(), String> {
    match DirBuilder::new().mode(0o755).create(EMPTY) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(reason(&e)),
        _ => (),
    }
    let meta = fs::symlink_metadata(EMPTY).map_err(|e| reason(&e))?;
    if !meta.is_dir() || meta.uid() != 0 || meta.mode() & 0o022 != 0 {
        return Err("must be a directory that root alone can write".into());
    }
    Ok(())
}

/// Makes the data directory, or sees to it that it is raftd's alone.
fn data_dir(path: &Path, user: User) -> Result<(), String> {
    let made = DirBuilder::new().mode(0o700).create(path);
    match made {
        Ok(()) => return chown(path, Some(user.uid), Some(user.gid)).map_err(|e| reason(&e)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => (),
        Err(e) => return Err(reason(&e)),
    }
    let meta = fs::metadata(path).map_err(|e| reason(&e))?;
    if !meta.is_dir() {
        return Err("not a directory".into());
    }
    if meta.uid() != user.uid {
        return Err(format!("not owned by {}", proc::DFSD_USER));
    }
    match meta.mode() & 0o7777 {
        0o700 => Ok(()),
        mode => Err(format!("mode {mode:04o}, not 0700")),
    }
}

/// There is no pledge(2) for this process: no promise covers mount(2) and
/// unmount(2), which it needs whenever a fused is lost or a mount is asked for.
/// What it can write and execute is narrowed instead.
fn narrow(conf: &Conf, debug: bool) -> io::Result<()> {
    // The configuration with its includes, names to resolve, mount points: a
    // reload may name any.
    unveil(Path::new("/"), "r")?;
    // To remove it.
    unveil(&conf.socket, "rwc")?;
    for device in [FUSE_DEVICE, "/dev/null"] {
        unveil(Path::new(device), "rw")?;
    }
    for program in ["raftd", "fused"] {
        unveil(&proc::libexec(program, debug), "rx")?;
    }
    unveil_lock()
}

fn remove_socket(conf: &Conf) {
    if let Err(e) = fs::remove_file(&conf.socket) {
        log_warnx!("unlink: {}: {}", conf.socket.display(), reason(&e));
    }
}

impl Parent {
    fn run(mut self, mut signals: Signals) -> ! {
        loop {
            self.wait(&signals);
            for signal in signals.take() {
                match signal {
                    Signal::SIGCHLD => self.reap(),
                    Signal::SIGHUP => self.reload(None),
                    _ => self.stop(),
                }
            }
            self.dispatch_raftd();
            let ids: Vec<MountId> = self.mounts.keys().copied().collect();
            for id in ids {
                self.dispatch_fused(id);
            }
            self.flush();
            self.timers();
        }
    }

    fn wait(&self, signals: &Signals) {
        let fused = self.mounts.values().filter_map(Slot::fused);
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.raftd.poll_fd());
        fds.extend(fused.filter_map(Child::poll_fd));
        let timeout = self
            .deadline()
            .map(|at| at.saturating_duration_since(Instant::now()));
        if let Err(e) = poll(&mut fds, timeout) {
            fatal!(e, "poll");
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let stop = match self.stop {
            Stop::No => None,
            Stop::Mounts { begun } => Some(begun + STOP_MOUNTS_LIMIT),
            Stop::Raftd { kill_at } => Some(kill_at),
        };
        let mounts = self.mounts.values().filter_map(Slot::deadline);
        mounts.chain(stop).min()
    }

    fn flush(&mut self) {
        self.raftd.flush();
        for fused in self.mounts.values_mut().filter_map(Slot::fused_mut) {
            fused.flush();
        }
    }

    fn timers(&mut self) {
        let now = Instant::now();
        self.mount_timers(now);
        match &mut self.stop {
            Stop::No => (),
            Stop::Mounts { begun } => {
                let detached = self.mounts.values().all(Slot::is_detached);
                if detached || *begun + STOP_MOUNTS_LIMIT <= now {
                    if !detached {
                        log_warnx!("fused does not end: left behind");
                    }
                    self.raftd.close();
                    let kill_at = *begun + STOP_LIMIT;
                    self.stop = Stop::Raftd { kill_at };
                }
            }
            Stop::Raftd { kill_at } => {
                if *kill_at <= now {
                    log_warnx!("raftd does not end: killed");
                    self.raftd.kill();
                    *kill_at = now + STOP_LIMIT;
                }
            }
        }
    }

    fn reap(&mut self) {
        while let Some((pid, exit)) = proc::reap() {
            if pid == self.raftd.pid {
                self.raftd_ended(exit);
            }
            self.fused_ended(pid, exit);
        }
    }

    /// Without raftd no mount can be served.  The dead mounts stay, so that
    /// nobody writes into the bare directories; the next start replaces them.
    fn raftd_ended(&mut self, exit: Exit) -> ! {
        if let Stop::Raftd { .. } = self.stop {
            if exit != Exit::Exited(0) {
                log_warnx!("raftd {exit}");
            }
            self.exit(0);
        }
        log_warnx!("lost child: raftd {exit}");
        for slot in self.mounts.values() {
            slot.kill();
        }
        self.exit(1)
    }

    fn exit(&self, code: i32) -> ! {
        remove_socket(&self.conf);
        log_info!("terminating");
        std::process::exit(code)
    }

    /// Mounts first, while raftd can still take what their fused bring.
    fn stop(&mut self) {
        if !matches!(self.stop, Stop::No) {
            return;
        }
        self.stop = Stop::Mounts {
            begun: Instant::now(),
        };
        let ids: Vec<MountId> = self.mounts.keys().copied().collect();
        for id in ids {
            self.mount_stop(id, false);
        }
    }
}
