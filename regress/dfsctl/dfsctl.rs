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

//! dfsctl(8) and mount_dfs(8) as built: the commands they take, what they send
//! over a control socket, and what they print for what comes back, compared
//! with the .ok files here.

#![forbid(unsafe_code)]

use common::conf::MountId;
use common::ctl::{
    CtlAttach, CtlLock, CtlLog, CtlMount, CtlPeer, CtlQuota, CtlRep, CtlReq, CtlResult, CtlSummary,
    MountState, PeerState, Role, CTL_FRAME_MAX,
};
use common::fs::{FsError, InodeNo, NodeId};
use common::imsg::Imsgbuf;
use common::lock::{LockKind, LockRange};
use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;

/// A control socket, gone with the test.
struct Socket(PathBuf);

impl Socket {
    fn new(test: &str) -> Socket {
        let name = format!("dfsctl-{test}.{}", std::process::id());
        Socket(std::env::temp_dir().join(name))
    }

    /// Answers one client as raftd would, as long as it asks; returns what the
    /// client asked and printed.
    fn serve(&self, client: &mut Command, answers: &[&[CtlRep]]) -> (Vec<CtlReq>, Output) {
        let _ = fs::remove_file(&self.0);
        let listener = UnixListener::bind(&self.0).expect("bind");
        let answers: Vec<Vec<CtlRep>> = answers.iter().map(|a| a.to_vec()).collect();
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().expect("accept");
            let mut channel = Imsgbuf::<CtlRep, CtlReq>::new(stream.into(), CTL_FRAME_MAX);
            let mut asked = Vec::new();
            let mut answers = answers.into_iter();
            while let Some(imsg) = channel.recv_blocking().expect("imsg") {
                asked.push(imsg.msg);
                for rep in answers.next().expect("a question too many") {
                    channel.compose(&rep, 0, None, &[]).expect("compose");
                }
                channel.flush_blocking().expect("write");
            }
            asked
        });
        let output = client.output().expect("run");
        // A client that has not come must not keep the server waiting.
        drop(UnixStream::connect(&self.0));
        (server.join().expect("server"), output)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn dfsctl(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dfsctl"));
    command.arg("-s").arg(socket).args(args);
    command
}

fn mount_dfs(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mount_dfs"));
    command.arg("-s").arg(socket).args(args);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn must_be(file: &str, got: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("regress/dfsctl")
        .join(file);
    let want = fs::read_to_string(&path).expect(file);
    assert!(got == want, "{file}: expected\n{want}but got\n{got}");
}

fn summary() -> CtlSummary {
    CtlSummary {
        cluster: "prod".into(),
        node: NodeId(1),
        role: Role::Follower,
        leader: Some(NodeId(2)),
        term: 7,
        applied: 48211,
        committed: 48211,
        quorum: true,
        current: true,
        age: Some(0),
        alarm: None,
        bytes: 10 << 30,
        bytes_free: 9 << 30,
        inodes: 1000000,
        inodes_free: 999000,
    }
}

fn peers() -> Vec<CtlRep> {
    let peer = |id: u64, role, matched: Option<u64>, since, state| {
        CtlRep::Peer(CtlPeer {
            id: NodeId(id),
            addr: format!("192.0.2.{id}:7400"),
            descr: (id == 3).then(|| "in the \"other\"\nbuilding".into()),
            role,
            matched,
            lag: matched.map(|matched| 48211 - matched),
            since,
            state,
        })
    };
    let day = 86400;
    let CtlRep::Peer(far) = peer(5, Role::Unknown, None, 9 * day + 3 * 3600, PeerState::Down)
    else {
        panic!()
    };
    let far = CtlPeer {
        addr: "[2001:db8:77:1200::5]:7401".into(),
        ..far
    };
    vec![
        peer(1, Role::Follower, Some(48211), 8047, PeerState::ThisNode),
        peer(2, Role::Leader, Some(48211), 8038, PeerState::Up),
        peer(3, Role::Follower, Some(48102), 41, PeerState::Up),
        peer(
            4,
            Role::Learner,
            Some(0),
            day + 7500,
            PeerState::NeedsResync,
        ),
        CtlRep::Peer(far),
    ]
}

fn mounts() -> Vec<CtlRep> {
    let mount = |id, point: &str, subtree: &str, read_only, open, state| {
        CtlRep::Mount(CtlMount {
            id: MountId(id),
            point: point.into(),
            subtree: subtree.into(),
            read_only,
            open,
            state,
        })
    };
    vec![
        mount(0, "/mnt/home", "/home", false, 12, MountState::Serving),
        mount(1, "/var/www", "/", true, 0, MountState::Starting),
        mount(7, "/mnt/x\u{1b}[1m", "/", true, 0, MountState::Detached),
    ]
}

fn log() -> CtlRep {
    CtlRep::Log(CtlLog {
        first: 30001,
        last: 48215,
        flushed: 48213,
        committed: 48211,
        applied: 48211,
        checkpoint: 47000,
        floor: 30000,
        segments: 3,
        spare: 2,
        bytes: 190 << 20,
        limit: 4 << 30,
        groups: 12034,
        flushes: 12040,
        written: 999,
        checkpoints: 17,
    })
}

fn quotas() -> Vec<CtlRep> {
    let quota = |path: &str, used: u64, limit: u64, inodes: u64, most: u64, counting| {
        CtlRep::Quota(CtlQuota {
            path: path.into(),
            used_bytes: used,
            limit_bytes: limit,
            used_inodes: inodes,
            limit_inodes: most,
            counting,
        })
    };
    vec![
        quota("/", 3 << 30, 0, 123456, 0, false),
        quota("/home/anna", 512 << 20, 1 << 30, 4711, 10000, false),
        quota("/www/\u{1b}[1m", 4096, 0, 2, 5, true),
    ]
}

fn locks() -> Vec<CtlRep> {
    let lock = |id, node, range, kind, held| {
        CtlRep::Lock(CtlLock {
            id,
            ino: InodeNo(9000 + node),
            node: NodeId(node),
            pid: 4711,
            range,
            kind,
            held,
        })
    };
    let some = LockRange { start: 5, end: 99 };
    vec![
        lock(48001, 1, LockRange::WHOLE, LockKind::Exclusive, true),
        lock(48017, 2, some, LockKind::Shared, true),
        lock(48020, 2, LockRange::WHOLE, LockKind::Shared, false),
    ]
}

fn status(summary: CtlSummary) -> Vec<CtlRep> {
    let mut records = vec![CtlRep::Summary(summary)];
    records.extend(peers());
    records.extend(mounts());
    records.push(CtlRep::End);
    records
}

#[test]
fn columns() {
    let socket = Socket::new("columns");
    let ended = |mut records: Vec<CtlRep>| {
        records.push(CtlRep::End);
        records
    };
    let cases = [
        ("status", CtlReq::ShowSummary, status(summary())),
        ("show summary", CtlReq::ShowSummary, status(summary())),
        ("show peers", CtlReq::ShowPeers, ended(peers())),
        ("show mounts", CtlReq::ShowMounts, ended(mounts())),
        ("show log", CtlReq::ShowLog, ended(vec![log()])),
        ("quota", CtlReq::ShowQuota(None), ended(quotas())),
        ("show locks", CtlReq::ShowLocks, ended(locks())),
    ];
    for (command, req, records) in cases {
        let words: Vec<&str> = command.split(' ').collect();
        let name = words.last().expect("word").replace("summary", "status");
        for (json, suffix) in [(None, "ok"), (Some("-j"), "json.ok")] {
            let args: Vec<&str> = json.into_iter().chain(words.iter().copied()).collect();
            let (asked, out) = socket.serve(&mut dfsctl(&socket.0, &args), &[&records]);
            assert_eq!(asked, std::slice::from_ref(&req));
            assert_eq!(text(&out.stderr), "");
            assert_eq!(out.status.code(), Some(0));
            must_be(&format!("{name}.{suffix}"), &text(&out.stdout));
        }
    }
}

#[test]
fn first_lines() {
    let socket = Socket::new("first");
    let cases = [
        CtlSummary {
            role: Role::Leader,
            leader: Some(NodeId(1)),
            ..summary()
        },
        CtlSummary {
            role: Role::Candidate,
            leader: None,
            quorum: false,
            current: false,
            age: Some(3672),
            ..summary()
        },
        CtlSummary {
            current: false,
            ..summary()
        },
        CtlSummary {
            role: Role::Unknown,
            leader: None,
            term: 0,
            applied: 0,
            quorum: false,
            current: false,
            age: None,
            ..summary()
        },
        CtlSummary {
            current: false,
            alarm: Some("data/00/1f: No space\nleft on device".into()),
            ..summary()
        },
    ];
    let mut lines = String::new();
    for case in cases {
        let well = case.quorum && case.current;
        let records = [CtlRep::Summary(case), CtlRep::End];
        let (_, out) = socket.serve(&mut dfsctl(&socket.0, &["status"]), &[&records]);
        assert_eq!(out.status.code(), Some(if well { 0 } else { 1 }));
        let out = text(&out.stdout);
        let header = out.find("  Node").expect("header");
        lines += &out[..header];
    }
    must_be("first.ok", &lines);
}

#[test]
fn words_may_be_short() {
    let socket = Socket::new("short");
    let cases: [(&[&str], CtlReq); 9] = [
        (&["stat"], CtlReq::ShowSummary),
        (&["sh", "s"], CtlReq::ShowSummary),
        (&["sh", "p"], CtlReq::ShowPeers),
        (&["log", "v"], CtlReq::LogVerbose(true)),
        (&["log", "brief"], CtlReq::LogVerbose(false)),
        (&["r"], CtlReq::Reload),
        (&["sh", "locks"], CtlReq::ShowLocks),
        (&["c", "17"], CtlReq::CancelLock(17)),
        (&["stop"], CtlReq::Stop),
    ];
    for (words, req) in cases {
        let answer = if req.is_show() {
            CtlRep::End
        } else {
            CtlRep::Result(CtlResult::Ok)
        };
        let (asked, out) = socket.serve(&mut dfsctl(&socket.0, words), &[&[answer]]);
        assert_eq!(asked, std::slice::from_ref(&req), "{words:?}");
        if !req.is_show() {
            assert_eq!(text(&out.stdout), "ok\n");
            assert_eq!(out.status.code(), Some(0));
        }
    }
}

/// What raftd is asked by dfsctl lock, and how that ends.
#[test]
fn lock_runs_a_command() {
    let socket = Socket::new("lock");
    let mounts: Vec<CtlRep> = mounts().into_iter().chain([CtlRep::End]).collect();
    let run = |args: &[&str], answers: &[CtlRep]| {
        let args: Vec<&str> = ["lock"].iter().chain(args).copied().collect();
        let mut client = dfsctl(&socket.0, &args);
        client.stdin(std::process::Stdio::null());
        socket.serve(&mut client, &[&mounts, answers])
    };
    let held = [CtlRep::Locked(48001)];
    let lost = [CtlRep::Locked(48001), CtlRep::LockLost];
    let error = |e| [CtlRep::Result(CtlResult::Lock(e))];
    let command = [
        "/mnt/home/x/../a",
        "sh",
        "-c",
        "echo $DFSD_LOCK_FENCE; exit 7",
    ];
    let (asked, out) = run(&command, &held);
    assert_eq!(asked.first(), Some(&CtlReq::ShowMounts));
    match asked.get(1) {
        Some(CtlReq::Lock { path, wait, .. }) => {
            assert_eq!((path.as_str(), *wait), ("/mnt/home/a", true))
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        (out.status.code(), text(&out.stdout)),
        (Some(7), "48001\n".into())
    );
    let (asked, out) = run(&["-w", "0", "/x", "true"], &held);
    assert!(matches!(
        asked.get(1),
        Some(CtlReq::Lock { wait: false, .. })
    ));
    assert_eq!(out.status.code(), Some(0));
    // All processes of the command are told.
    let (_, out) = run(&["/x", "sh", "-c", "sleep 600; true"], &lost);
    assert_eq!(out.status.code(), Some(70));
    assert_eq!(text(&out.stderr), "dfsctl: /x: lock lost\n");
    let (_, out) = run(&["/x", "/nonexistent/command"], &held);
    assert_eq!(out.status.code(), Some(71));
    for (answer, code) in [
        (error(FsError::WouldBlock), 75),
        (error(FsError::NotFound), 66),
        (error(FsError::Io), 69),
        (error(FsError::NoLocks), 69),
        ([CtlRep::Result(CtlResult::Permission)], 77),
    ] {
        let (_, out) = run(&["/x", "touch", "/nonexistent/file"], &answer);
        assert_eq!(out.status.code(), Some(code), "{answer:?}");
        assert!(text(&out.stderr).starts_with("dfsctl: /x: "));
    }
    // Nobody answers.
    let (_, out) = run(&["-w", "1", "/x", "true"], &[]);
    assert_eq!(out.status.code(), Some(75));
}

#[test]
fn errors() {
    let nowhere = Path::new("/nonexistent/dfsd.sock");
    let mut all = String::new();
    let cases: [&[&str]; 19] = [
        &[],
        &["cancel"],
        &["cancel", "x"],
        &["cancel", "1", "2"],
        &["s"],
        &["st"],
        &["frob"],
        &["show"],
        &["show", "frob"],
        &["log", ""],
        &["status", "now"],
        &["quota", "-x"],
        &["quota", "-d"],
        &["quota", "-d", "-b1", "/"],
        &["quota", "-b", "1.5G", "/"],
        &["quota", "-i", "16777216T", "/"],
        &["quota", "/", "/"],
        &["-x"],
        &["status"],
    ];
    for words in cases {
        let out = dfsctl(nowhere, words).output().expect("run");
        assert_eq!(out.status.code(), Some(1), "{words:?}");
        assert_eq!(text(&out.stdout), "");
        all += &format!("$ dfsctl {}\n{}", words.join(" "), text(&out.stderr));
    }
    must_be("errors.ok", &all);
}

#[test]
fn results() {
    let socket = Socket::new("results");
    let mut all = String::new();
    for result in [CtlResult::Permission, CtlResult::ConfigError] {
        let answer = [CtlRep::Result(result)];
        let (_, out) = socket.serve(&mut dfsctl(&socket.0, &["reload"]), &[&answer]);
        assert_eq!(out.status.code(), Some(1));
        all += &text(&out.stderr);
    }
    assert_eq!(
        all,
        "dfsctl: reload: need root privileges\n\
         dfsctl: reload: configuration not changed: see the log\n"
    );
}

#[test]
fn quota_options() {
    let socket = Socket::new("quota");
    let set = |path: &str, bytes, inodes| CtlReq::SetQuota {
        path: path.into(),
        bytes,
        inodes,
    };
    let show = |path: &str| CtlReq::ShowQuota(Some(path.into()));
    let cases: [(&[&str], CtlReq); 9] = [
        (&["quota", "/a"], show("/a")),
        (&["quota", "b/../c/./d"], show("/usr/c/d")),
        (&["quota", "/../a//b/"], show("/a/b")),
        (&["quota", "."], show("/usr")),
        (&["quota", "-b", "10g", "/"], set("/", Some(10 << 30), None)),
        (&["quota", "-i", "2K", "/a"], set("/a", None, Some(2048))),
        (
            &["quota", "-b0", "-i7", "a"],
            set("/usr/a", Some(0), Some(7)),
        ),
        (&["q", "-d", "/a"], CtlReq::DropQuota("/a".into())),
        (
            &["quota", "-d", "--", "-d"],
            CtlReq::DropQuota("/usr/-d".into()),
        ),
    ];
    for (words, req) in cases {
        let answer = match req.is_show() {
            true => CtlRep::End,
            false => CtlRep::Result(CtlResult::Ok),
        };
        let mut command = dfsctl(&socket.0, words);
        let (asked, _) = socket.serve(command.current_dir("/usr"), &[&[answer]]);
        assert_eq!(asked, [req], "{words:?}");
    }
    let mut all = String::new();
    for result in [
        CtlResult::Refused(FsError::NotFound),
        CtlResult::NestedQuota,
        CtlResult::NoQuota,
    ] {
        let answer = [CtlRep::Result(result)];
        let mut command = dfsctl(&socket.0, &["quota", "-i", "1", "/a"]);
        let (_, out) = socket.serve(&mut command, &[&answer]);
        assert_eq!(out.status.code(), Some(1));
        all += &text(&out.stderr);
    }
    assert_eq!(
        all,
        "dfsctl: quota -i 1 /a: not found\n\
         dfsctl: quota -i 1 /a: lies in a tree with a quota, or has one beneath\n\
         dfsctl: quota -i 1 /a: has no quota\n"
    );
}

#[test]
fn a_reader_that_has_gone() {
    let socket = Socket::new("gone");
    let sh = |socket: &Path| {
        let mut sh = Command::new("sh");
        sh.arg("-c")
            .arg("\"$0\" -s \"$1\" status | :")
            .arg(env!("CARGO_BIN_EXE_dfsctl"))
            .arg(socket);
        sh
    };
    let (_, out) = socket.serve(&mut sh(&socket.0), &[&status(summary())]);
    assert_eq!(text(&out.stderr), "");
}

#[test]
fn mounts_by_name() {
    let socket = Socket::new("mount");
    let dir = std::env::temp_dir().join(format!("mount_dfs.{}", std::process::id()));
    fs::create_dir_all(dir.join("real")).expect("mkdir");
    let dir = dir.canonicalize().expect("canonicalize");
    std::os::unix::fs::symlink("real", dir.join("link")).expect("symlink");
    let record = |id: u32, point: PathBuf| {
        CtlRep::Mount(CtlMount {
            id: MountId(id),
            point: point.to_str().expect("UTF-8").into(),
            subtree: "/".into(),
            read_only: false,
            open: 0,
            state: MountState::Detached,
        })
    };
    // Neither mount point is there: they are never looked at.
    let shown = [
        record(4, dir.join("real/a")),
        record(9, dir.join("link/b")),
        CtlRep::End,
    ];
    let ok: &[CtlRep] = &[CtlRep::Result(CtlResult::Ok)];
    for (name, id) in [
        ("real/a", 4),
        ("link/b", 9),
        ("link/a", 4),
        ("./real//b/", 9),
    ] {
        let mut command = mount_dfs(&socket.0, &[name]);
        command.current_dir(&dir);
        let (asked, out) = socket.serve(&mut command, &[&shown, ok]);
        assert_eq!(
            asked,
            [
                CtlReq::ShowMounts,
                CtlReq::Mount(CtlAttach::as_is(MountId(id)))
            ]
        );
        assert_eq!((out.status.code(), text(&out.stderr)), (Some(0), "".into()));
    }

    let name = dir.join("real/a");
    let name = name.to_str().expect("UTF-8");
    let not: &[CtlRep] = &[CtlRep::Result(CtlResult::NotMounted)];
    let (asked, out) = socket.serve(&mut mount_dfs(&socket.0, &["-u", name]), &[&shown, not]);
    assert_eq!(asked, [CtlReq::ShowMounts, CtlReq::Umount(MountId(4))]);
    assert_eq!(
        text(&out.stderr),
        format!("mount_dfs: {name}: not mounted\n")
    );
    assert_eq!(out.status.code(), Some(1));

    let (asked, out) = socket.serve(&mut mount_dfs(&socket.0, &["/mnt/x"]), &[&shown]);
    assert_eq!(asked, [CtlReq::ShowMounts]);
    assert_eq!(
        text(&out.stderr),
        "mount_dfs: /mnt/x: not in dfsd.conf; add: mount \"/mnt/x\" { }\n"
    );
    assert_eq!(out.status.code(), Some(1));

    let out = mount_dfs(&socket.0, &[]).output().expect("run");
    assert_eq!(
        text(&out.stderr),
        "usage: mount_dfs [-uv] [-o options] [-s socket] [spec] directory\n"
    );
    fs::remove_dir_all(&dir).expect("rmdir");
}
