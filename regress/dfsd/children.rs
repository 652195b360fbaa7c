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

//! The parent and its children: start and stop, what happens when one of them
//! is lost, mounts that come and go, reload.  One node, with the real raftd
//! and fused and a real mount.

#![forbid(unsafe_code)]

#[path = "dir.rs"]
mod dir;

use dir::{
    bin, chmod, copy_program, have_user, kill, skip_unless_root, skipped, text, wait_until, Dir,
    Running,
};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

fn skip(test: &str) -> bool {
    if skip_unless_root(test) {
        return true;
    }
    let device = ["/dev/fuse", "/dev/fuse0"]
        .iter()
        .any(|d| Path::new(d).exists());
    let built = bin().join("raftd").exists() && bin().join("fused").exists();
    let why = match (have_user(), device, built) {
        (false, _, _) => "no user _dfsd",
        (_, false, _) => "no FUSE device",
        (_, _, false) => "raftd and fused are not built",
        _ => return false,
    };
    skipped(test, why);
    true
}

fn start(dir: &Dir) -> Running {
    Running::start(dir.dfsd_with(bin()))
}

/// Until the mount serves and the node is current.
fn start_current(dir: &Dir) -> Running {
    let mut dfsd = start(dir);
    dfsd.wait_for("serving");
    wait_current(dir);
    dfsd
}

fn wait_current(dir: &Dir) {
    wait_until("a node that is current", || {
        dfsctl(dir, &["status"]).status.success()
    });
}

fn tool(program: &str, dir: &Dir, args: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.arg("-s").arg(dir.socket()).args(args);
    command.output().expect("run")
}

fn dfsctl(dir: &Dir, args: &[&str]) -> Output {
    tool(env!("CARGO_BIN_EXE_dfsctl"), dir, args)
}

fn mount_dfs(dir: &Dir, args: &[&str]) -> Output {
    tool(env!("CARGO_BIN_EXE_mount_dfs"), dir, args)
}

/// It succeeds or fails, with these words on stderr.
fn must(out: Output, code: i32, words: &str) {
    assert_eq!((out.status.code(), text(&out)), (Some(code), words.into()));
}

fn runs(pid: u32) -> bool {
    let out = Command::new("ps")
        .args(["-o", "stat=", "-p", &pid.to_string()])
        .output();
    let stat = out.expect("ps").stdout;
    !stat.is_empty() && !stat.starts_with(b"Z")
}

fn one(pids: Vec<u32>) -> u32 {
    let [pid] = pids[..] else {
        panic!("not one process: {pids:?}");
    };
    pid
}

/// Nothing is left of a dfsd that has ended well.
fn must_be_gone(dir: &Dir, children: &[u32]) {
    assert!(!dir.socket().exists());
    assert!(!Dir::is_mounted(&dir.mnt()));
    for pid in children {
        assert!(!runs(*pid), "{pid} still runs");
    }
}

#[test]
fn start_and_stop() {
    if skip("start_and_stop") {
        return;
    }
    let dir = Dir::new("stop");
    let file = dir.mnt().join("file");
    for how in ["TERM", "INT", "dfsctl"] {
        let mut dfsd = start_current(&dir);
        fs::write(&file, how).expect("write");
        let name = dir.socket();
        assert_eq!(dir.error(), format!("{}: already running", name.display()));
        let mut children = dfsd.children("raftd");
        children.extend(dfsd.children("fused"));
        assert_eq!(children.len(), 2);
        match how {
            "dfsctl" => must(dfsctl(&dir, &["stop"]), 0, ""),
            signal => dfsd.signal(signal),
        }
        assert_eq!(dfsd.wait().code(), Some(0));
        dfsd.wait_for("terminating");
        must_be_gone(&dir, &children);
        assert!(!file.exists());
    }
    let _dfsd = start_current(&dir);
    assert_eq!(fs::read(&file).expect("read"), b"dfsctl");
}

#[test]
fn busy_at_stop() {
    if skip("busy_at_stop") {
        return;
    }
    let dir = Dir::new("busy");
    let mut dfsd = start_current(&dir);
    let file = fs::File::create(dir.mnt().join("file")).expect("create");
    dfsd.signal("TERM");
    assert_eq!(dfsd.wait().code(), Some(0));
    must_be_gone(&dir, &[]);
    drop(file);
}

#[test]
fn fused_lost() {
    if skip("fused_lost") {
        return;
    }
    let dir = Dir::new("fused");
    let mut dfsd = start_current(&dir);
    let raftd = one(dfsd.children("raftd"));
    let file = dir.mnt().join("file");
    fs::write(&file, "still here").expect("write");

    let fused = one(dfsd.children("fused"));
    kill(fused, "KILL");
    let line = dfsd.wait_for("lost child");
    let name = dir.mnt();
    assert_eq!(
        line,
        format!("lost child: fused {} terminated; signal 9", name.display())
    );
    // Nobody may write into what is below.
    assert!(Dir::is_mounted(&dir.mnt()));
    dfsd.wait_for("serving");
    assert_eq!(fs::read(&file).expect("read"), b"still here");
    assert_ne!(one(dfsd.children("fused")), fused);
    assert_eq!(one(dfsd.children("raftd")), raftd);
}

#[test]
fn raftd_lost() {
    if skip("raftd_lost") {
        return;
    }
    let dir = Dir::new("raftd");
    let file = dir.mnt().join("file");
    {
        let mut dfsd = start_current(&dir);
        fs::write(&file, "still here").expect("write");
        let fused = one(dfsd.children("fused"));
        kill(one(dfsd.children("raftd")), "KILL");
        dfsd.wait_for("lost child: raftd terminated; signal 9");
        assert_eq!(dfsd.wait().code(), Some(1));
        wait_until("the end of fused", || !runs(fused));
    }
    assert!(!dir.socket().exists());
    assert!(Dir::is_mounted(&dir.mnt()));
    assert!(fs::write(&file, "").is_err());

    let mut dfsd = start(&dir);
    dfsd.wait_for("replacing a dead mount");
    dfsd.wait_for("serving");
    wait_current(&dir);
    assert_eq!(fs::read(&file).expect("read"), b"still here");
    dfsd.signal("TERM");
    assert_eq!(dfsd.wait().code(), Some(0));
    must_be_gone(&dir, &[]);
}

#[test]
fn parent_lost() {
    if skip("parent_lost") {
        return;
    }
    let dir = Dir::new("parent");
    let mut dfsd = start_current(&dir);
    let children = [one(dfsd.children("raftd")), one(dfsd.children("fused"))];
    dfsd.signal("KILL");
    dfsd.wait();
    wait_until("the end of its children", || {
        !children.iter().any(|pid| runs(*pid))
    });
    assert!(Dir::is_mounted(&dir.mnt()));
    assert!(fs::write(dir.mnt().join("file"), "").is_err());
    must(
        dfsctl(&dir, &["status"]),
        1,
        &format!(
            "dfsctl: connect: {}: Connection refused\n",
            dir.socket().display()
        ),
    );

    let dfsd = start_current(&dir);
    fs::write(dir.mnt().join("file"), "").expect("write");
    drop(dfsd);
}

#[test]
fn mounts_by_hand() {
    if skip("mounts_by_hand") {
        return;
    }
    let dir = Dir::new("hand");
    let hand = dir.path.join("hand");
    let name = hand.to_str().expect("UTF-8");
    fs::create_dir(&hand).expect("mkdir");
    let conf = format!("{}mount \"{name}\" {{ auto no }}\n", dir.conf());
    dir.put("conf", &conf);
    let mut dfsd = start_current(&dir);
    assert!(!Dir::is_mounted(&hand));

    must(mount_dfs(&dir, &[name]), 0, "");
    fs::write(dir.mnt().join("file"), "one tree").expect("write");
    assert_eq!(fs::read(hand.join("file")).expect("read"), b"one tree");
    let already = format!("mount_dfs: {name}: already mounted\n");
    must(mount_dfs(&dir, &[name]), 1, &already);
    must(mount_dfs(&dir, &["-u", name]), 0, "");
    assert!(!Dir::is_mounted(&hand));
    // Read up to here, or the lines below could be those of this mount.
    dfsd.wait_for(&format!("mount {name}: detached"));
    let not = format!("mount_dfs: {name}: not mounted\n");
    must(mount_dfs(&dir, &["-u", name]), 1, &not);

    // umount(8) is as good.
    must(mount_dfs(&dir, &[name]), 0, "");
    dfsd.wait_for(&format!("mount {name}: serving"));
    let umount = Command::new("umount").arg(&hand).status();
    assert!(umount.expect("umount").success());
    dfsd.wait_for(&format!("mount {name}: detached"));
    must(mount_dfs(&dir, &["-u", name]), 1, &not);
    must(mount_dfs(&dir, &[name]), 0, "");

    // What is in the way is not covered up.
    must(mount_dfs(&dir, &["-u", name]), 0, "");
    fs::remove_dir(&hand).expect("rmdir");
    let failed = format!("mount_dfs: {name}: mount failed: see the log\n");
    must(mount_dfs(&dir, &[name]), 1, &failed);
    dfsd.wait_for(&format!("mount {name}: No such file or directory"));

    let not_ours = dir.path.join("db");
    let not_ours = not_ours.to_str().expect("UTF-8");
    let add = format!("mount_dfs: {not_ours}: not in dfsd.conf; add: mount \"{not_ours}\" {{ }}\n");
    must(mount_dfs(&dir, &[not_ours]), 1, &add);
}

#[test]
fn reload() {
    if skip("reload") {
        return;
    }
    let dir = Dir::new("reload");
    let mut dfsd = start_current(&dir);
    let more = dir.path.join("more");
    let name = more.to_str().expect("UTF-8");
    fs::create_dir(&more).expect("mkdir");

    // A mount comes, by the command, and goes, by the signal.
    let conf = format!("mount \"{name}\"\n{}", dir.conf());
    dir.put("conf", &conf);
    must(dfsctl(&dir, &["reload"]), 0, "");
    dfsd.wait_for(&format!("mount {name}: serving"));
    fs::write(dir.mnt().join("file"), "one tree").expect("write");
    assert_eq!(fs::read(more.join("file")).expect("read"), b"one tree");
    dir.put("conf", &dir.conf());
    dfsd.signal("HUP");
    dfsd.wait_for(&format!("mount {name}: detached"));
    assert!(!Dir::is_mounted(&more));

    // The other one has not noticed; now it does.
    let fused = one(dfsd.children("fused"));
    dir.put(
        "conf",
        &dir.conf().replace("timeout 5", "timeout 5\n\tauto no"),
    );
    must(dfsctl(&dir, &["reload"]), 0, "");
    assert_eq!(one(dfsd.children("fused")), fused);
    dir.put("conf", &dir.conf().replace("timeout 5", "read only yes"));
    must(dfsctl(&dir, &["reload"]), 0, "");
    dfsd.wait_for(": detached");
    dfsd.wait_for(": serving");
    assert_eq!(fs::read(dir.mnt().join("file")).expect("read"), b"one tree");
    assert!(fs::write(dir.mnt().join("file"), "").is_err());

    // What is wrong or cannot change changes nothing.
    let not = "dfsctl: reload: configuration not changed: see the log\n";
    dir.put("conf", "cluster\n");
    must(dfsctl(&dir, &["reload"]), 1, not);
    dfsd.wait_for("conf:1: ");
    for (what, from, to) in [
        ("cluster", "\"test\"", "\"other\""),
        ("data", "/db\"", "/db2\""),
        ("socket", "/sock\"", "/sock2\""),
        ("lock lease", "node 1", "node 1\nlock lease 5"),
    ] {
        dir.put("conf", &dir.conf().replace(from, to));
        must(dfsctl(&dir, &["reload"]), 1, not);
        dfsd.wait_for(&format!("reload: {what} cannot change: restart dfsd"));
    }
    let fused = one(dfsd.children("fused"));
    assert!(runs(fused) && Dir::is_mounted(&dir.mnt()));
    dir.put("conf", &dir.conf());
    must(dfsctl(&dir, &["reload"]), 0, "");
    dfsd.wait_for(": serving");
    fs::write(dir.mnt().join("file"), "").expect("write");
}

#[test]
fn log_level() {
    if skip("log_level") {
        return;
    }
    let dir = Dir::new("log");
    let _dfsd = start_current(&dir);
    must(dfsctl(&dir, &["log", "verbose"]), 0, "");
    must(dfsctl(&dir, &["log", "brief"]), 0, "");
}

#[test]
fn not_for_others() {
    if skip("not_for_others") {
        return;
    }
    let dir = Dir::new("others");
    let _dfsd = start_current(&dir);
    let program = dir.path.join("dfsctl");
    copy_program(env!("CARGO_BIN_EXE_dfsctl"), &program);
    let socket = dir.socket();
    let as_nobody = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("-s").arg(&socket).args(args);
        command.uid(65534).gid(65534).output().expect("run")
    };
    let denied = format!("dfsctl: connect: {}: Permission denied\n", socket.display());
    must(as_nobody(&["status"]), 1, &denied);
    // Where the administrator lets everybody in they may look.
    chmod(&socket, 0o666);
    must(as_nobody(&["status"]), 0, "");
    must(
        as_nobody(&["reload"]),
        1,
        "dfsctl: reload: need root privileges\n",
    );
    must(
        as_nobody(&["stop"]),
        1,
        "dfsctl: stop: need root privileges\n",
    );
    wait_current(&dir);
}
