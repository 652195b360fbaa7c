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

//! A descriptor that cannot be delivered because the receiver has no free
//! slot: the message arrives all the same, and says so.  A program of its own,
//! because the limit is that of the process.

use common::imsg::{Imsgbuf, Message};
use common::sys::socket;
use nix::sys::resource::{getrlimit, setrlimit, Resource};
use serde::{Deserialize, Serialize};
use std::fs::File;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pass(u32);

impl Message for Pass {
    const CHANNEL: u32 = 1;

    fn name(&self) -> &'static str {
        "IMSG_PASS"
    }

    fn wants_fd(&self) -> bool {
        true
    }
}

#[test]
fn fd_lost() {
    let (a, b) = socket::socketpair().unwrap();
    let mut tx: Imsgbuf<Pass, Pass> = Imsgbuf::new(a, 4096);
    let mut rx: Imsgbuf<Pass, Pass> = Imsgbuf::new(b, 4096);
    tx.allow_fdpass();
    rx.allow_fdpass();
    for i in 0..3 {
        let null = File::open("/dev/null").unwrap();
        tx.compose(&Pass(i), i, Some(null.into()), &[]).unwrap();
    }
    tx.flush_blocking().unwrap();

    let first = rx.recv_blocking().unwrap().unwrap();
    assert!(first.fd.is_some() && !first.fd_lost);

    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 3, hard).unwrap();
    let second = rx.recv_blocking();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    let second = second.unwrap().unwrap();
    assert_eq!(second.msg, Pass(1));
    assert!(second.fd.is_none() && second.fd_lost);

    let third = rx.recv_blocking().unwrap().unwrap();
    assert_eq!(third.msg, Pass(2));
    assert!(third.fd.is_some() && !third.fd_lost);
}
