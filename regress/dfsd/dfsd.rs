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

//! The parent before it has started anything: its options, and what makes it
//! refuse to start.

#![forbid(unsafe_code)]

#[path = "dir.rs"]
mod dir;

use dir::{chmod, copy_program, give_to_dfsd, have_user, skip_unless_root, skipped, text, Dir};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

fn dfsd(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dfsd"));
    command.args(args).output().expect("run")
}

#[test]
fn options() {
    let usage = "usage: dfsd [-dnVv] [-D macro=value] [-f file]\n";
    for args in [&["-x"][..], &["-f"], &["-n", "conf"]] {
        let out = dfsd(args);
        assert_eq!((out.status.code(), text(&out)), (Some(1), usage.into()));
    }
    let out = dfsd(&["-V"]);
    let want = concat!("dfsd ", env!("CARGO_PKG_VERSION"), " /");
    let version = String::from_utf8(out.stdout).expect("UTF-8");
    assert!(version.starts_with(want), "{version}");
    assert_eq!(out.status.code(), Some(0));
    let out = dfsd(&["-n", "-Dself"]);
    assert_eq!(text(&out), "dfsd: could not parse macro definition self\n");
    assert_eq!(out.status.code(), Some(1));
}

#[test]
fn configtest() {
    let dir = Dir::new("configtest");
    let conf = dir.put("macro", &dir.conf().replace("node 1", "node $self"));
    let conf = conf.to_str().expect("UTF-8");

    let out = dfsd(&["-n", "-D", "self=1", "-f", conf]);
    assert_eq!(
        (out.status.code(), text(&out)),
        (Some(0), "configuration OK\n".into())
    );
    assert!(out.stdout.is_empty());

    let out = dfsd(&["-nvDself=1", "-f", conf]);
    assert_eq!(out.status.code(), Some(0));
    assert!(!text(&out).contains("configuration OK"));
    let printed = String::from_utf8(out.stdout).expect("UTF-8");
    assert!(printed.contains("node 1\n"), "{printed}");

    let out = dfsd(&["-nf", conf]);
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out).contains("macro:2: macro 'self' not defined"));
    let none = dir.path.join("none");
    let out = dfsd(&["-nf", none.to_str().expect("UTF-8")]);
    let want = format!("{}: No such file or directory\n", none.display());
    assert_eq!((out.status.code(), text(&out)), (Some(1), want));
    // Nothing but the files of the test: no socket, no data.
    assert!(!dir.socket().exists() && !dir.data().exists());
}

/// The configuration in README.md.
#[test]
fn readme() {
    let dir = Dir::new("readme");
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = fs::read_to_string(readme).expect("README.md");
    let begin = readme.find("    cluster \"").expect("cluster");
    let conf: String = readme[begin..]
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with("    "))
        .map(|line| format!("{line}\n"))
        .collect();
    let conf = dir.put("readme", &conf);
    let out = dfsd(&["-nf", conf.to_str().expect("UTF-8")]);
    let want = (Some(0), "configuration OK\n".into());
    assert_eq!((out.status.code(), text(&out)), want);
}

#[test]
fn not_root() {
    if skip_unless_root("not_root") {
        return;
    }
    let dir = Dir::new("not-root");
    let program = dir.path.join("dfsd");
    copy_program(env!("CARGO_BIN_EXE_dfsd"), &program);
    chmod(&dir.path.join("conf"), 0o644);
    let mut command = Command::new(&program);
    command.arg("-d").arg("-f").arg(dir.path.join("conf"));
    let out = command.uid(65534).gid(65534).output().expect("run");
    assert_eq!(text(&out), "dfsd: need root privileges\n");
    assert_eq!(out.status.code(), Some(1));
}

#[test]
fn no_user() {
    if skip_unless_root("no_user") {
        return;
    }
    if have_user() {
        skipped("no_user", "there is a user _dfsd");
        return;
    }
    assert_eq!(Dir::new("no-user").error(), "unknown user _dfsd");
}

/// All of these need root and the user.
fn skip(test: &str) -> bool {
    if skip_unless_root(test) {
        return true;
    }
    if !have_user() {
        skipped(test, "no user _dfsd");
    }
    !have_user()
}

#[test]
fn data_directory() {
    if skip("data_directory") {
        return;
    }
    let dir = Dir::new("data");
    let data = dir.data();
    let name = data.display();

    fs::write(&data, "").expect("write");
    assert_eq!(dir.error(), format!("{name}: not a directory"));
    fs::remove_file(&data).expect("unlink");

    fs::create_dir(&data).expect("mkdir");
    assert_eq!(dir.error(), format!("{name}: not owned by _dfsd"));
    give_to_dfsd(&data);
    chmod(&data, 0o755);
    assert_eq!(dir.error(), format!("{name}: mode 0755, not 0700"));
    chmod(&data, 0o700);
    assert_eq!(
        dir.error(),
        format!(
            "exec: {}/raftd: No such file or directory",
            dir.path.display()
        )
    );

    let missing = dir.conf().replace("/db\"", "/none/db\"");
    dir.put("conf", &missing);
    let name = dir.path.join("none/db");
    assert_eq!(
        dir.error(),
        format!("{}: No such file or directory", name.display())
    );
}

#[test]
fn data_directory_is_made() {
    if skip("data_directory_is_made") {
        return;
    }
    let dir = Dir::new("made");
    assert!(dir.error().starts_with("exec: "));
    let meta = fs::metadata(dir.data()).expect("data directory");
    assert_eq!(meta.mode() & 0o7777, 0o700);
    assert_ne!(meta.uid(), 0);
    // It takes its own.
    assert!(dir.error().starts_with("exec: "));
}

#[test]
fn mount_points() {
    if skip("mount_points") {
        return;
    }
    let dir = Dir::new("points");
    let mnt = dir.mnt();
    let name = mnt.display();

    fs::remove_dir(&mnt).expect("rmdir");
    assert_eq!(
        dir.error(),
        format!("mount {name}: No such file or directory")
    );
    fs::write(&mnt, "").expect("write");
    assert_eq!(dir.error(), format!("mount {name}: not a directory"));
    fs::remove_file(&mnt).expect("unlink");
    std::os::unix::fs::symlink(&dir.path, &mnt).expect("symlink");
    assert_eq!(dir.error(), format!("mount {name}: not a directory"));
    fs::remove_file(&mnt).expect("unlink");

    // One that is not attached at start can be made later.
    let conf = dir.conf();
    dir.put("conf", &conf.replace("timeout 5", "auto no"));
    assert!(dir.error().starts_with("exec: "));

    fs::create_dir(&mnt).expect("mkdir");
    dir.put(
        "conf",
        &(conf.clone() + conf.lines().last().expect("mount") + "\n"),
    );
    let out = dir.dfsd_with(&dir.path).output().expect("run");
    assert_eq!(out.status.code(), Some(1));
    assert!(text(&out).contains("conf:8: "), "{}", text(&out));
}

#[test]
fn mounted_by_somebody_else() {
    if skip("mounted_by_somebody_else") {
        return;
    }
    let dir = Dir::new("mounted");
    let mnt = dir.mnt();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "tmpfs"]).arg(&mnt);
    if !mount.status().is_ok_and(|status| status.success()) {
        skipped("mounted_by_somebody_else", "cannot mount");
        return;
    }
    assert_eq!(
        dir.error(),
        format!("mount {}: already mounted", mnt.display())
    );
    assert!(Dir::is_mounted(&mnt));
}

#[test]
fn port_in_use() {
    if skip("port_in_use") {
        return;
    }
    let dir = Dir::new("port");
    let _listener = TcpListener::bind(("127.0.0.1", dir.port)).expect("bind");
    assert_eq!(
        dir.error(),
        format!("bind: 127.0.0.1:{}: Address already in use", dir.port)
    );
    assert!(!dir.socket().exists());
}

#[test]
fn address_of_another_machine() {
    if skip("address_of_another_machine") {
        return;
    }
    let dir = Dir::new("address");
    let conf = dir.conf().replace("on 127.0.0.1", "on 192.0.2.1");
    dir.put("conf", &conf);
    assert_eq!(
        dir.error(),
        format!(
            "bind: 192.0.2.1:{}: Cannot assign requested address",
            dir.port
        )
    );
}

#[test]
fn control_socket() {
    if skip("control_socket") {
        return;
    }
    let dir = Dir::new("control");
    let socket = dir.socket();
    let name = socket.display();
    {
        let _listener = UnixListener::bind(&socket).expect("bind");
        assert_eq!(dir.error(), format!("{name}: already running"));
        assert!(socket.exists());
    }
    // Nobody answers there any more.
    assert!(socket.exists());
    assert!(dir.error().starts_with("exec: "));
    assert!(!socket.exists());

    fs::write(&socket, "precious").expect("write");
    assert_eq!(dir.error(), format!("{name}: not a socket"));
    assert_eq!(fs::read(&socket).expect("read"), b"precious");
    fs::remove_file(&socket).expect("unlink");

    let conf = dir.conf().replace("/sock\"", "/none/sock\"");
    dir.put("conf", &conf);
    let name = dir.path.join("none/sock");
    assert_eq!(
        dir.error(),
        format!("bind: {}: No such file or directory", name.display())
    );
}

#[test]
fn program_that_cannot_run() {
    if skip("program_that_cannot_run") {
        return;
    }
    let dir = Dir::new("program");
    let raftd = dir.put("raftd", "");
    assert_eq!(
        raftd.metadata().expect("stat").permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(
        dir.error(),
        format!("exec: {}: Permission denied", raftd.display())
    );
    assert!(!Dir::is_mounted(&dir.mnt()));
}
