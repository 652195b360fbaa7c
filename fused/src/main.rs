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

//! fused: serves one mount.  It is executed by dfsd(8), which gives it the
//! FUSE device, already mounted, and two sockets to raftd; it opens nothing
//! itself.
//!
//! ```text
//!   kernel --requests--> device.rs --> ops.rs --> raftd.rs --> raftd
//!          <--answers------------------ ops.rs <-- raftd.rs <--
//!          <--invalidations-- device.rs <-- cache.rs <-- ops.rs
//! ```

#![forbid(unsafe_code)]

mod ahead;
mod backing;
mod cache;
mod device;
mod handle;
mod ops;
mod parent;
mod raftd;
mod retry;

use common::imsg::Imsgbuf;
use common::msg::{FusedToParent, PARENT_FRAME_MAX};
use common::proc::{child_init, drop_privileges, setproctitle};
use common::sys::pending::Processes;
use common::sys::pledge::pledge;
use common::sys::rlimit::raise_nofile;
use common::{fatal, fatalx, log_debug, sys};
use std::path::Path;
use std::process::exit;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

/// Nothing is in there; the parent makes it where the system has none.
const CHROOT: &str = "/var/empty";
/// For raftd to answer what was under way when the mount ended.
const SETTLE_MAX: Duration = Duration::from_secs(5);
/// Open files wanted, and how many of those are not backing files.
const NOFILE: u64 = 16384;
const NOFILE_OWN: u64 = 64;

fn usage() -> ! {
    eprintln!("usage: fused [-dv]");
    exit(1)
}

/// A panic ends the process, and the log has to say why.
fn log_panics(what: &'static str) {
    std::panic::set_hook(Box::new(move |info| {
        let text = info.payload().downcast_ref::<&str>().copied();
        let string = info.payload().downcast_ref::<String>();
        let text = text.or(string.map(String::as_str)).unwrap_or("no text");
        match info.location() {
            Some(at) => fatalx!("{what}: {text}: {at}"),
            None => fatalx!("{what}: {text}"),
        }
    }));
}

fn main() {
    sys::malloc::limit_arenas();
    let (mut debug, mut verbose) = (false, false);
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "-d" => debug = true,
            "-v" => verbose = true,
            _ => usage(),
        }
    }
    let fd = child_init("fused", debug, verbose);
    log_panics("panic");
    let nofile = match raise_nofile(NOFILE) {
        Ok(nofile) => nofile,
        Err(e) => fatal!(e, "setrlimit"),
    };
    let processes = Processes::open();
    if let Err(e) = drop_privileges(Path::new(CHROOT), debug) {
        fatal!(e, "fused");
    }
    // stdio: the device, the sockets, threads, the log.
    // recvfd: the descriptors below, and a backing file with each open.
    if let Err(e) = pledge("stdio recvfd", None) {
        fatal!(e, "pledge");
    }

    let mut parent = Imsgbuf::new(fd, PARENT_FRAME_MAX);
    parent.allow_fdpass();
    if let Err(e) = parent.flush_blocking() {
        fatal!(e, "imsg_flush: parent");
    }
    let setup = parent::receive(&mut parent);
    let point = setup.mount.point.display().to_string();
    setproctitle(&point);
    let (reader, mut parent) = parent.into_split();
    parent::start(reader);

    let (control, control_reader) = raftd::Lane::new(setup.control);
    let (bulk, bulk_reader) = raftd::Lane::new(setup.bulk);
    let cap = nofile.saturating_sub(NOFILE_OWN) as usize;
    let readers = device::readers(&setup.device);
    let ops = ops::Ops::new(setup.mount, control, bulk, cap, readers);
    raftd::start(&ops, control_reader);
    raftd::start(&ops, bulk_reader);
    backing::start(&ops);
    ops::start(&ops);
    if let Some(processes) = processes {
        ops::waiters::start(&ops, processes);
    }
    // What a kernel before OpenBSD 8.0 says first the library chokes on.
    log_panics("FUSE device: unknown protocol");
    let serve = match device::open(setup.device, &ops) {
        Ok(serve) => serve,
        Err(e) => fatal!(e, "FUSE device"),
    };
    log_panics("panic");

    let ready = parent.compose(&FusedToParent::Ready, 0, None, &[]);
    if let Err(e) = ready {
        fatal!(e, "imsg_compose: parent");
    }
    if let Err(e) = parent.flush_blocking() {
        fatal!(e, "imsg_flush: parent");
    }
    if let Err(e) = serve() {
        fatal!(e, "mount {point}");
    }
    ops.settle_all(SETTLE_MAX);
    log_debug!("mount {point}: unmounted");
    exit(0)
}

/// A panic ends the process, so nobody leaves a lock poisoned.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

fn wait<'a, T>(condvar: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condvar.wait(guard).unwrap_or_else(|e| e.into_inner())
}

fn wait_timeout<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: Duration,
) -> MutexGuard<'a, T> {
    match condvar.wait_timeout(guard, timeout) {
        Ok((guard, _)) => guard,
        Err(e) => e.into_inner().0,
    }
}

/// Starts a thread that lives as long as the process.
fn spawn(name: &str, body: impl FnOnce() + Send + 'static) {
    if let Err(e) = thread::Builder::new().name(name.into()).spawn(body) {
        fatal!(e, "thread");
    }
}
