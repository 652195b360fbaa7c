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

//! Processes for real: this program starts itself as a child in the ways that
//! the daemons do.  It has its own main, because fork wants one thread.

use common::imsg::{Imsgbuf, Message, MAX_IMSGSIZE};
use common::proc::{self, Exit, Pid};
use common::sys::poll::{wait, PollFlags};
use common::sys::signal::{Signal, Signals};
use common::sys::{daemon, mount, privilege, random, rlimit, socket};
use serde::{Deserialize, Serialize};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

#[derive(Debug, Default, Serialize, Deserialize)]
struct Report(BTreeMap<String, String>);

impl Message for Report {
    const CHANNEL: u32 = 1;

    fn name(&self) -> &'static str {
        "IMSG_REPORT"
    }
}

impl Report {
    fn put(&mut self, key: &str, value: impl ToString) {
        self.0.insert(key.into(), value.to_string());
    }

    fn get(&self, key: &str) -> &str {
        self.0
            .get(key)
            .unwrap_or_else(|| panic!("{key} not in {self:?}"))
    }
}

type Channel = Imsgbuf<Report, Report>;

thread_local! {
    /// Why the test that runs cannot say more here.
    static SKIPPED: Cell<Option<&'static str>> = const { Cell::new(None) };
}

const LIMIT: Duration = Duration::from_secs(20);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("child") => child(&args[2..]),
        Some("fatal") => fatal(),
        Some("stray") => drop(proc::child_init("stray", true, false)),
        _ => parent(),
    }
}

/// A file or directory of this test alone, gone at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        let name = format!("dfsd-proc-{:016x}", random::random_u64().unwrap());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).unwrap();
        Scratch(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Not what is below a mount, should one be left.
        let _ = fs::remove_file(self.0.join("marker"));
        let _ = fs::remove_dir(&self.0);
    }
}

fn parent() {
    let tests: [(&str, fn()); 11] = [
        ("child_has_its_channel_and_no_more", child_has_its_channel),
        ("title", title),
        ("ends_and_reasons", ends_and_reasons),
        ("exec_fails", exec_fails),
        ("stray_child", stray_child),
        ("fatal_lines", fatal_lines),
        ("signals", signals),
        ("libexec", libexec),
        ("detaches", detaches),
        ("privileges", privileges),
        ("fuse_mount", fuse_mount),
    ];
    for (name, test) in tests {
        test();
        match SKIPPED.take() {
            Some(reason) => println!("test {name} ... SKIPPED: {reason}"),
            None => println!("test {name} ... ok"),
        }
    }
    assert_eq!(proc::reap(), None);
}

fn spawn(args: &[&str], debug: bool) -> (Pid, Channel) {
    let (ours, theirs) = socket::socketpair().unwrap();
    let args: Vec<&str> = ["child"].iter().chain(args).copied().collect();
    let exe = std::env::current_exe().unwrap();
    let pid = proc::spawn(&exe, &args, theirs, debug).unwrap();
    (pid, Imsgbuf::new(ours, MAX_IMSGSIZE))
}

fn recv(chan: &mut Channel) -> Report {
    assert!(chan.wait_readable(Some(LIMIT)).unwrap(), "child is silent");
    chan.recv_blocking().unwrap().expect("child closed").msg
}

/// Ends a child the orderly way: its channel closes.
fn close(pid: Pid, chan: Channel) {
    drop(chan);
    assert_eq!(proc::wait(pid).unwrap(), Exit::Exited(0));
}

/// What a child does: what its arguments say, a report, then wait for the end.
fn child(args: &[String]) {
    let mut report = Report::default();
    let fds = fs::read_dir("/proc/self/fd").map(|dir| dir.count() - 1);
    report.put("fds", fds.unwrap_or(0));
    let chan = proc::child_init("proctest", true, false);
    let null = fs::metadata("/dev/null").unwrap();
    report.put(
        "stdout is null",
        same_file(&null, &fs::metadata("/dev/stdout")),
    );
    for arg in args {
        match arg.split_once('=').unwrap_or((arg, "")) {
            ("title", title) => proc::setproctitle(title),
            ("daemon", _) => daemon::daemon().unwrap(),
            ("drop", dir) => drop_privileges(Path::new(dir), &mut report),
            ("become", dir) => become_nobody(Path::new(dir), &mut report),
            ("exit", code) => std::process::exit(code.parse().unwrap()),
            _ => panic!("{arg}"),
        }
    }
    report.put("pid", std::process::id());
    report.put("path", std::env::var("PATH").unwrap_or_default());
    report.put("nofile", rlimit::raise_nofile(64).unwrap());
    let mut chan: Channel = Imsgbuf::new(chan, MAX_IMSGSIZE);
    chan.compose(&report, 0, None, &[]).unwrap();
    chan.flush_blocking().unwrap();
    assert!(chan.recv_blocking().unwrap().is_none());
}

fn same_file(a: &fs::Metadata, b: &io::Result<fs::Metadata>) -> bool {
    use std::os::unix::fs::MetadataExt;
    matches!(b, Ok(b) if (a.dev(), a.ino(), a.rdev()) == (b.dev(), b.ino(), b.rdev()))
}

fn child_has_its_channel() {
    // Descriptors of all sorts that the child must not see, one of them with
    // the child's own number.
    let (a, _b) = socket::socketpair().unwrap();
    let inherited = nix::unistd::dup(&a).unwrap();
    let (pid, mut chan) = spawn(&[], false);
    let report = recv(&mut chan);
    drop(inherited);
    assert_eq!(report.get("pid"), pid.to_string());
    assert_eq!(report.get("stdout is null"), "true");
    if cfg!(target_os = "linux") {
        assert_eq!(report.get("fds"), "4");
    }
    // The parent's business, so a child ignores it.
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        proc::kill(pid, signal).unwrap();
    }
    close(pid, chan);
}

fn title() {
    if !cfg!(target_os = "linux") {
        return SKIPPED.set(Some("needs /proc"));
    }
    let exe = std::env::current_exe().unwrap();
    let name = exe.file_name().unwrap().to_string_lossy().into_owned();
    let long = "/mnt/".repeat(100);
    for title in ["raft engine", &long] {
        let (pid, mut chan) = spawn(&[&format!("title={title}")], true);
        let report = recv(&mut chan);
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let shown = String::from_utf8(cmdline).unwrap();
        let shown = shown.trim_end_matches('\0');
        let want = format!("{name}: {title}");
        assert!(
            want.starts_with(shown) && shown.len() > 60.min(want.len() - 1),
            "{shown}"
        );
        // The environment has moved, and is whole.
        assert_eq!(report.get("path"), std::env::var("PATH").unwrap());
        close(pid, chan);
    }
}

fn ends_and_reasons() {
    let (pid, mut chan) = spawn(&["exit=3"], true);
    assert!(chan.recv_blocking().unwrap().is_none());
    assert_eq!(
        proc::wait(pid).unwrap().to_string(),
        "exited abnormally; status 3"
    );

    let (pid, mut chan) = spawn(&[], true);
    assert_eq!(proc::reap(), None);
    recv(&mut chan);
    proc::kill(pid, Signal::SIGKILL).unwrap();
    assert!(chan.recv_blocking().unwrap().is_none());
    let exit = proc::wait(pid).unwrap();
    assert_eq!(exit, Exit::Signaled(9));
    assert_eq!(exit.to_string(), "terminated; signal 9");
}

fn exec_fails() {
    for (path, kind) in [
        ("/nonexistent/raftd", io::ErrorKind::NotFound),
        ("/dev/null", io::ErrorKind::PermissionDenied),
    ] {
        let (_ours, theirs) = socket::socketpair().unwrap();
        let err = proc::spawn(Path::new(path), &["-d"], theirs, true).unwrap_err();
        assert_eq!(err.kind(), kind);
        // Nothing is left to reap.
        assert_eq!(proc::reap(), None);
    }
}

fn this_program(arg: &str) -> (Option<i32>, String) {
    let exe = std::env::current_exe().unwrap();
    let output = Command::new(exe).arg(arg).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), stderr)
}

fn stray_child() {
    let (code, stderr) = this_program("stray");
    assert_eq!(code, Some(1));
    let want = "stray: descriptor 3: only dfsd starts this program: Bad file descriptor\n";
    assert_eq!(stderr, want);
}

fn fatal() {
    common::log::log_init("proctest", true, false);
    common::log_debug!("not verbose: {}", "never");
    common::log::log_setverbose(true);
    common::log_debug!("verbose: {}", 1);
    common::log_info!("startup");
    common::log_warnx!("peer 192.0.2.1 (\n): {}", "strange");
    let err = fs::File::open("/nonexistent").unwrap_err();
    common::log_warn!(err, "open: {}", "/nonexistent");
    common::log::log_procname("raft engine".into());
    common::fatalx!("dispatch_parent: unexpected {}", "IMSG_FS_REP");
}

fn fatal_lines() {
    let (code, stderr) = this_program("fatal");
    assert_eq!(code, Some(1));
    let want = "verbose: 1\n\
                startup\n\
                peer 192.0.2.1 (\\n): strange\n\
                open: /nonexistent: No such file or directory\n\
                fatal in raft engine: dispatch_parent: unexpected IMSG_FS_REP\n";
    assert_eq!(stderr, want);
}

fn signals() {
    let mut signals = Signals::new(&[Signal::SIGCHLD, Signal::SIGUSR1]).unwrap();
    assert!(signals.take().is_empty());
    proc::kill(nix::unistd::getpid(), Signal::SIGUSR1).unwrap();
    assert!(wait(signals.as_fd(), PollFlags::POLLIN, Some(LIMIT)).unwrap());
    assert_eq!(signals.take(), [Signal::SIGUSR1]);
    let (pid, chan) = spawn(&["exit=0"], true);
    assert!(wait(signals.as_fd(), PollFlags::POLLIN, Some(LIMIT)).unwrap());
    assert_eq!(signals.take(), [Signal::SIGCHLD]);
    assert_eq!(proc::reap(), Some((pid, Exit::Exited(0))));
    assert_eq!(proc::reap(), None);
    drop(chan);
    assert!(Signals::new(&[]).is_err());
}

fn libexec() {
    std::env::set_var("DFSD_LIBEXEC", "/somewhere");
    assert_eq!(proc::libexec("raftd", true), Path::new("/somewhere/raftd"));
    assert_ne!(proc::libexec("raftd", false), Path::new("/somewhere/raftd"));
    std::env::remove_var("DFSD_LIBEXEC");
    assert!(proc::libexec("raftd", true).is_absolute());
}

fn detaches() {
    let (pid, mut chan) = spawn(&["daemon"], true);
    let report = recv(&mut chan);
    assert_ne!(report.get("pid"), pid.to_string());
    // The one we started has left at once; its child ends with the channel.
    close(pid, chan);
}

fn drop_privileges(dir: &Path, report: &mut Report) {
    let result = proc::drop_privileges(dir, false);
    let text = result.map_or_else(|err| err.to_string(), |()| "dropped".into());
    report.put("drop", text);
    report_who(report);
}

fn become_nobody(dir: &Path, report: &mut Report) {
    let nobody = privilege::user("nobody").unwrap().unwrap();
    privilege::chroot(dir).unwrap();
    privilege::become_user(nobody).unwrap();
    privilege::no_new_privs().unwrap();
    report.put("want uid", nobody.uid);
    report_who(report);
}

fn report_who(report: &mut Report) {
    report.put("uid", nix::unistd::getuid());
    report.put("groups", nix::unistd::getgroups().unwrap().len());
    let back = nix::unistd::setresuid(0.into(), 0.into(), 0.into()).is_ok();
    report.put("back to root", back);
    report.put("cwd", std::env::current_dir().unwrap().display());
    report.put("marker", Path::new("/marker").exists());
    #[cfg(target_os = "linux")]
    report.put("no_new_privs", nix::sys::prctl::get_no_new_privs().unwrap());
}

fn privileges() {
    let scratch = Scratch::new();
    fs::write(scratch.0.join("marker"), "").unwrap();
    let (pid, mut chan) = spawn(&[&format!("drop={}", scratch.0.display())], true);
    let report = recv(&mut chan);
    close(pid, chan);
    if !privilege::is_root() {
        assert_eq!(report.get("drop"), "need root privileges");
        return SKIPPED.set(Some("needs root"));
    }
    if privilege::user(proc::DFSD_USER).unwrap().is_some() {
        assert_eq!(report.get("drop"), "dropped");
        check_dropped(&report);
    } else {
        assert_eq!(report.get("drop"), "unknown user _dfsd");
        assert_eq!(report.get("uid"), "0");
    }
    let (pid, mut chan) = spawn(&[&format!("become={}", scratch.0.display())], true);
    let report = recv(&mut chan);
    assert_eq!(report.get("uid"), report.get("want uid"));
    check_dropped(&report);
    close(pid, chan);
}

fn check_dropped(report: &Report) {
    assert_ne!(report.get("uid"), "0");
    assert_eq!(report.get("groups"), "1");
    assert_eq!(report.get("back to root"), "false");
    assert_eq!(report.get("cwd"), "/");
    assert_eq!(report.get("marker"), "true");
    if cfg!(target_os = "linux") {
        assert_eq!(report.get("no_new_privs"), "true");
    }
}

fn fuse_mount() {
    let device = match mount::fuse_open() {
        Ok(device) if privilege::is_root() => device,
        _ => return SKIPPED.set(Some("needs root and a FUSE device")),
    };
    let scratch = Scratch::new();
    let point = scratch.0.canonicalize().unwrap();
    let ours = || {
        let all = mount::mounts().unwrap();
        all.into_iter().find(|entry| entry.point == point)
    };
    assert_eq!(ours(), None);
    let flags = mount::MountFlags {
        read_only: true,
        nosuid: true,
        ..Default::default()
    };
    mount::fuse_mount(device.as_fd(), "test:/x", &point, flags, 131_072).unwrap();
    let entry = ours().expect("not in the table");
    assert_eq!(entry.fstype, mount::FSTYPE);
    if cfg!(target_os = "linux") {
        assert_eq!(entry.source, "test:/x");
    }
    // Nobody serves it: without the device it is dead, and still detaches.
    drop(device);
    mount::unmount(&point).unwrap();
    assert_eq!(ours(), None);
    assert!(mount::unmount(&point).is_err());
}
