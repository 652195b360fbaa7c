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

//! raftd, the raft engine: consensus, the store, and the network.  Executed
//! by dfsd(8), which hands it its sockets; runs as _dfsd, with the data
//! directory as its root.  It never mounts, and never opens a file outside.

#![forbid(unsafe_code)]

use common::msg::{RaftdToParent, PARENT_FRAME_MAX};
use common::{fatal, fatalx, log_info, proc, sys};
use raftd::control::Control;
use raftd::engine::Engine;
use raftd::parent::{self, Channel, Parent, Startup};
use raftd::store::checkpoint::Checkpoint;
use raftd::store::meta::MAP_SIZE;
use raftd::store::Store;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use tokio::net::UnixListener;

/// Backing files open at a time, those passed on, peers, and some more.
const NOFILE: u64 = 4096;
/// Threads of the runtime, one for so many processors.  What it does are many
/// small steps that follow each other, and a step that goes over to another
/// thread costs more than most of them do; the flushes, the lanes of fused and
/// large copies have threads of their own.
const CPUS_PER_WORKER: usize = 2;
const WORKERS_MAX: usize = 4;

fn main() {
    sys::malloc::limit_arenas();
    let (debug, verbose) = flags();
    let fd = proc::child_init("raftd", debug, verbose);
    let mut channel = Channel::new(fd, PARENT_FRAME_MAX);
    channel.allow_fdpass();
    let startup = parent::startup(&mut channel);

    // As root for the last time: the limit, and the way into the chroot.
    sys::maps::open();
    if let Err(e) = sys::rlimit::raise_nofile(NOFILE) {
        common::log_warn!(e, "setrlimit");
    }
    if let Err(e) = proc::drop_privileges(&startup.conf.data, false) {
        fatalx!("{e}");
    }
    proc::setproctitle("raft engine");
    pledge();

    let store = open_store(&startup);
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads((cpus / CPUS_PER_WORKER).clamp(1, WORKERS_MAX))
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(run(channel, startup, store)),
        Err(e) => fatal!(e, "runtime"),
    }
    log_info!("raft engine exiting");
    // Not through the runtime's end: a task may be waiting for a disk.
    std::process::exit(0);
}

fn flags() -> (bool, bool) {
    let (mut debug, mut verbose) = (false, false);
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "-d" => debug = true,
            "-v" => verbose = true,
            _ => {
                eprintln!("raftd is executed by dfsd(8)");
                std::process::exit(1);
            }
        }
    }
    (debug, verbose)
}

/// stdio: memory, sockets that are there, threads, clocks, syslog.
/// rpath wpath cpath: segments of the log, LMDB, backing files.
/// flock: LMDB's readers, and the lock of the data directory.
/// inet: accepts from peers, and connects to them.
/// unix recvfd: the sockets of each new fused, and control clients.
/// sendfd: backing files to fused, read-only.
fn pledge() {
    let promises = "stdio rpath wpath cpath flock inet unix recvfd sendfd";
    if let Err(e) = sys::pledge::pledge(promises, Some("")) {
        fatal!(e, "pledge");
    }
    if !sys::pledge::have_pledge() {
        log_info!("no pledge on this system");
    }
}

fn open_store(startup: &Startup) -> Arc<Store> {
    let conf = &startup.conf;
    match Store::open(Path::new("/"), &conf.cluster, conf.node, MAP_SIZE) {
        Ok(store) => Arc::new(store),
        // Paths in the error begin at the data directory.
        Err(e) => fatalx!("{}: {e}", conf.data.display()),
    }
}

async fn run(channel: Channel, startup: Startup, store: Arc<Store>) {
    let Startup {
        conf,
        listener,
        control,
        sockets,
    } = startup;
    let nonce = match store.next_run() {
        Ok(run) => run,
        Err(e) => fatal!(e, "runs"),
    };
    let parent = match Parent::new(channel) {
        Ok(parent) => parent,
        Err(e) => fatal!(e, "parent"),
    };
    let checkpoint = match Checkpoint::start(store.clone()) {
        Ok(checkpoint) => checkpoint,
        Err(e) => fatal!(e, "checkpoint"),
    };
    log_info!("peers talk in clear: keep them on a network that you trust");
    let engine = Engine::start(conf, store, nonce).await;
    let clients = Control::new(engine.clone(), parent.clone());
    tokio::spawn(engine.clone().serve_peers(listener));
    tokio::spawn(clients.clone().serve(control_listener(control)));
    parent.send(&RaftdToParent::Ready);
    parent.serve(&engine, &clients, sockets).await;
    engine.shutdown(checkpoint).await;
}

fn control_listener(control: OwnedFd) -> UnixListener {
    let listener = std::os::unix::net::UnixListener::from(control);
    let listening = sys::socket::listen(&listener).and_then(|()| UnixListener::from_std(listener));
    match listening {
        Ok(listener) => listener,
        Err(e) => fatal!(e, "control socket"),
    }
}
