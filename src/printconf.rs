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

//! Prints a configuration so that it parses back to the same.  Runs in dfsd,
//! the parent; writes nothing itself.

#![forbid(unsafe_code)]

use common::conf::{Conf, Mount, Peer};
use std::net::SocketAddr;
use std::path::Path;

pub fn print_config(conf: &Conf) -> String {
    let mut out = String::new();
    out += &format!("cluster {}\n", quote(&conf.cluster));
    out += &format!("node {}\n", conf.node);
    out += &format!("listen on {}\n", addr(conf.listen));
    out += &format!("data {}\n", path(&conf.data));
    out += &format!("socket {}\n", path(&conf.socket));
    out += &format!("lock lease {}\n", conf.lock_lease.as_secs());
    out += &format!("log limit {}\n", size(conf.log_limit));
    out += &format!("reserve {}\n", size(conf.reserve));
    out.push('\n');
    for peer in &conf.peers {
        out += &print_peer(peer);
    }
    for mount in &conf.mounts {
        out.push('\n');
        out += &print_mount(mount);
    }
    out
}

fn print_peer(peer: &Peer) -> String {
    let addr = addr(peer.addr);
    match &peer.descr {
        None => format!("peer {addr} {{ id {} }}\n", peer.id),
        Some(descr) => {
            let descr = quote(descr);
            format!("peer {addr} {{\n\tid {}\n\tdescr {descr}\n}}\n", peer.id)
        }
    }
}

fn print_mount(mount: &Mount) -> String {
    let mut out = format!("mount {} {{\n", path(&mount.point));
    out += &format!("\tsubtree {}\n", path(&mount.subtree));
    out += &format!("\tread only {}\n", yesno(mount.read_only));
    out += &format!("\ttimeout {}\n", mount.timeout.as_secs());
    out += &format!("\tnosuid {}\n", yesno(mount.nosuid));
    out += &format!("\tnodev {}\n", yesno(mount.nodev));
    out += &format!("\tnoexec {}\n", yesno(mount.noexec));
    out += &format!("\tnoatime {}\n", yesno(mount.noatime));
    out += &format!("\tstrict {}\n", yesno(mount.strict));
    out += &format!("\tdirty {}\n", yesno(mount.dirty));
    if let Some(maxage) = mount.maxage {
        out += &format!("\tmaxage {}\n", maxage.as_secs());
    }
    out += &format!("\tlocal lock {}\n", yesno(mount.local_lock));
    out += &format!("\tasync close {}\n", yesno(mount.async_close));
    out += &format!("\tauto {}\n", yesno(mount.auto));
    out + "}\n"
}

/// An address and its port as the file has them.
pub fn addr(addr: SocketAddr) -> String {
    format!("{} port {}", addr.ip(), addr.port())
}

/// A number of bytes with the largest suffix that loses nothing.
pub fn size(bytes: u64) -> String {
    for (suffix, shift) in [("T", 40), ("G", 30), ("M", 20), ("K", 10)] {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{suffix}", bytes >> shift);
        }
    }
    bytes.to_string()
}

fn yesno(value: bool) -> &'static str {
    if value {
        "yes"
    } else {
        "no"
    }
}

/// Paths come from a file that is UTF-8, so nothing is lost.
fn path(path: &Path) -> String {
    quote(&path.to_string_lossy())
}

/// A string that reads back as itself, whatever is in it.
pub fn quote(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
