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

//! What dfsctl(8) prints: columns for people, JSON for programs, both from
//! the records that raftd sent.  Runs in dfsctl; it only makes text, and never
//! trusts a record to be free of what a terminal would obey.

#![forbid(unsafe_code)]

use common::conf::DEFAULTS;
use common::ctl::{
    CtlLock, CtlLog, CtlMount, CtlPeer, CtlQuota, CtlReq, CtlSummary, PeerState, Role,
};
use common::lock::{LockKind, LockRange};
use std::fmt::{self, Write};
use std::net::SocketAddr;

/// The answer to one request, sorted by kind.
#[derive(Default)]
pub struct Records {
    pub summary: Option<CtlSummary>,
    pub peers: Vec<CtlPeer>,
    pub mounts: Vec<CtlMount>,
    pub log: Option<CtlLog>,
    pub quotas: Vec<CtlQuota>,
    pub locks: Vec<CtlLock>,
}

/// With the newline of the last line; empty when there is nothing to show.
pub fn columns(req: &CtlReq, records: &Records) -> String {
    match req {
        CtlReq::ShowPeers => peers(&records.peers),
        CtlReq::ShowMounts => mounts(&records.mounts),
        CtlReq::ShowLog => records.log.as_ref().map(log).unwrap_or_default(),
        CtlReq::ShowQuota(_) => quotas(&records.quotas),
        CtlReq::ShowLocks => locks(&records.locks),
        _ => {
            let mut out = records.summary.as_ref().map(summary).unwrap_or_default();
            out += &peers(&records.peers);
            if !records.mounts.is_empty() {
                out += &mounts(&records.mounts);
            }
            out
        }
    }
}

fn summary(s: &CtlSummary) -> String {
    let mut out = format!("node {}, ", s.node);
    out += &match (s.role, s.leader) {
        (Role::Unknown, _) => "starting".into(),
        (Role::Follower | Role::Learner, Some(leader)) => format!("{} of {leader}", s.role),
        (role, _) => role.to_string(),
    };
    out += &format!(", term {}, applied {}", s.term, s.applied);
    if !s.quorum {
        out += ", no quorum";
    }
    match (s.current, s.age) {
        (true, _) => {}
        (false, Some(age)) => out += &format!(", not current for {}", Age(age)),
        (false, None) => out += ", not current since its start",
    }
    if let Some(alarm) = &s.alarm {
        out += &format!("\nalarm: {}", visible(alarm));
    }
    out + "\n"
}

fn peers(peers: &[CtlPeer]) -> String {
    let mut out = peer_row(
        ' ', "Node", "Address", "Role", "Match", "Lag", "Up/Down", "State",
    );
    for p in peers {
        out += &peer_row(
            if p.role == Role::Leader { '*' } else { ' ' },
            p.id,
            visible(&address(&p.addr)),
            p.role,
            or_dash(p.matched),
            or_dash(p.lag),
            Age(p.since),
            &p.state,
        );
    }
    out
}

#[allow(clippy::too_many_arguments)]
fn peer_row(
    star: char,
    node: impl fmt::Display,
    addr: impl fmt::Display,
    role: impl fmt::Display,
    matched: impl fmt::Display,
    lag: impl fmt::Display,
    age: impl fmt::Display,
    state: impl fmt::Display,
) -> String {
    format!(
        "{star}{node:>5} {addr:<21} {role:<9} {matched:>8} {lag:>6} {age:>8}  {state}\n",
        node = node.to_string(),
        age = age.to_string(),
    )
}

/// The port only where it is not the usual one.
fn address(addr: &str) -> String {
    match addr.parse::<SocketAddr>() {
        Ok(addr) if addr.port() == DEFAULTS.port => addr.ip().to_string(),
        _ => addr.into(),
    }
}

fn or_dash(n: Option<u64>) -> String {
    n.map_or("-".into(), |n| n.to_string())
}

fn mounts(mounts: &[CtlMount]) -> String {
    let mut out = mount_row("Mount", "Subtree", "Mode", "Open", "State");
    for m in mounts {
        out += &mount_row(
            &visible(&m.point),
            &visible(&m.subtree),
            if m.read_only { "ro" } else { "rw" },
            m.open,
            m.state,
        );
    }
    out
}

fn mount_row(
    point: &str,
    subtree: &str,
    mode: &str,
    open: impl fmt::Display,
    state: impl fmt::Display,
) -> String {
    format!("{point:<20} {subtree:<16} {mode:<4} {open:>5}  {state}\n")
}

fn quotas(quotas: &[CtlQuota]) -> String {
    let row = |cells: [String; 6]| {
        let [path, used, limit, inodes, most, state] = cells;
        let row = format!("{path:<32} {used:>6} {limit:>6} {inodes:>10} {most:>10}  {state}");
        row.trim_end().to_string() + "\n"
    };
    let limit = |limit: u64, text: String| if limit == 0 { "-".into() } else { text };
    let names = ["Directory", "Used", "Limit", "Inodes", "Limit", "State"];
    let mut out = row(names.map(String::from));
    for q in quotas {
        out += &row([
            visible(&q.path),
            size(q.used_bytes),
            limit(q.limit_bytes, size(q.limit_bytes)),
            q.used_inodes.to_string(),
            limit(q.limit_inodes, q.limit_inodes.to_string()),
            if q.counting { "counting" } else { "" }.into(),
        ]);
    }
    out
}

fn locks(locks: &[CtlLock]) -> String {
    let row = |cells: [String; 7]| {
        let [id, ino, node, pid, kind, range, state] = cells;
        format!("{id:>10} {ino:>10} {node:>5} {pid:>7}  {kind:<9} {range:<21} {state}\n")
    };
    let names = ["Number", "Inode", "Node", "Pid", "Kind", "Bytes", "State"];
    let mut out = row(names.map(String::from));
    for l in locks {
        let end = match l.range.end >= LockRange::WHOLE.end {
            true => String::new(),
            false => l.range.end.to_string(),
        };
        out += &row([
            l.id.to_string(),
            l.ino.to_string(),
            l.node.to_string(),
            l.pid.to_string(),
            lock_kind(l.kind).into(),
            format!("{}-{end}", l.range.start),
            if l.held { "held" } else { "waits" }.into(),
        ]);
    }
    out
}

fn lock_kind(kind: LockKind) -> &'static str {
    match kind {
        LockKind::Shared => "shared",
        LockKind::Exclusive => "exclusive",
    }
}

fn json_lock(o: &mut Object, l: &CtlLock) {
    o.plain("number", l.id);
    o.plain("inode", l.ino);
    o.plain("node", l.node);
    o.plain("pid", l.pid);
    o.string("kind", Some(lock_kind(l.kind)));
    o.plain("start", l.range.start);
    o.plain("end", l.range.end);
    o.plain("held", l.held);
}

fn log(l: &CtlLog) -> String {
    let row = |cells: [String; 7]| {
        let [a, b, c, d, e, f, g] = cells;
        format!("{a:>10} {b:>10} {c:>10} {d:>10} {e:>10} {f:>10} {g:>10}\n")
    };
    let names = |names: [&str; 7]| row(names.map(String::from));
    let indexes = [
        l.first,
        l.last,
        l.flushed,
        l.committed,
        l.applied,
        l.checkpoint,
        l.floor,
    ];
    let mut out = names([
        "First",
        "Last",
        "Flushed",
        "Committed",
        "Applied",
        "Checkpoint",
        "Floor",
    ]);
    out += &row(indexes.map(|n| n.to_string()));
    out += &names([
        "Segments", "Spare", "Bytes", "Limit", "Groups", "Flushes", "Written",
    ]);
    out += &row([
        l.segments.to_string(),
        l.spare.to_string(),
        size(l.bytes),
        size(l.limit),
        l.groups.to_string(),
        l.flushes.to_string(),
        size(l.written),
    ]);
    out
}

/// Three digits and a unit.
fn size(bytes: u64) -> String {
    let mut unit = 0;
    let mut rest = bytes as f64;
    while rest >= 999.5 && unit < 6 {
        rest /= 1024.0;
        unit += 1;
    }
    let suffix = ["B", "K", "M", "G", "T", "P", "E"][unit];
    if unit > 0 && rest < 9.95 {
        format!("{rest:.1}{suffix}")
    } else {
        format!("{rest:.0}{suffix}")
    }
}

/// Seconds as 02:14:07, 1d03h22m or 01w2d03h.
struct Age(u64);

impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sec, min, hour) = (self.0 % 60, self.0 / 60 % 60, self.0 / 3600 % 24);
        let (day, week) = (self.0 / 86400 % 7, self.0 / (7 * 86400));
        if week > 0 {
            write!(f, "{week:02}w{day}d{hour:02}h")
        } else if day > 0 {
            write!(f, "{day}d{hour:02}h{min:02}m")
        } else {
            write!(f, "{hour:02}:{min:02}:{sec:02}")
        }
    }
}

/// A name must not move the cursor of who looks at it.
fn visible(text: &str) -> String {
    if text.chars().any(char::is_control) {
        text.escape_default().to_string()
    } else {
        text.into()
    }
}

/// One line, one object: the records under the names of their fields.
pub fn json(req: &CtlReq, records: &Records) -> String {
    let mut object = Object::default();
    match req {
        CtlReq::ShowPeers => object.list("peers", &records.peers, json_peer),
        CtlReq::ShowMounts => object.list("mounts", &records.mounts, json_mount),
        CtlReq::ShowQuota(_) => object.list("quotas", &records.quotas, json_quota),
        CtlReq::ShowLocks => object.list("locks", &records.locks, json_lock),
        CtlReq::ShowLog => {
            if let Some(l) = &records.log {
                json_log(&mut object, l);
            }
        }
        _ => {
            if let Some(s) = &records.summary {
                json_summary(&mut object, s);
            }
            object.list("peers", &records.peers, json_peer);
            object.list("mounts", &records.mounts, json_mount);
        }
    }
    object.close() + "\n"
}

fn json_summary(o: &mut Object, s: &CtlSummary) {
    o.string("cluster", Some(&s.cluster));
    o.plain("node", s.node);
    o.string("role", role(s.role));
    o.number("leader", s.leader.map(|id| id.0));
    o.plain("term", s.term);
    o.plain("applied", s.applied);
    o.plain("committed", s.committed);
    o.plain("quorum", s.quorum);
    o.plain("current", s.current);
    o.number("age", s.age);
    o.string("alarm", s.alarm.as_deref());
    o.plain("bytes", s.bytes);
    o.plain("bytes_free", s.bytes_free);
    o.plain("inodes", s.inodes);
    o.plain("inodes_free", s.inodes_free);
}

fn json_peer(o: &mut Object, p: &CtlPeer) {
    o.plain("id", p.id);
    o.string("addr", Some(&p.addr));
    o.string("descr", p.descr.as_deref());
    o.string("role", role(p.role));
    o.number("matched", p.matched);
    o.number("lag", p.lag);
    o.plain("since", p.since);
    o.plain("this_node", p.state == PeerState::ThisNode);
    o.string("state", Some(&p.state.to_string()));
}

fn json_mount(o: &mut Object, m: &CtlMount) {
    o.plain("id", m.id);
    o.string("point", Some(&m.point));
    o.string("subtree", Some(&m.subtree));
    o.plain("read_only", m.read_only);
    o.plain("open", m.open);
    o.string("state", Some(&m.state.to_string()));
}

fn json_quota(o: &mut Object, q: &CtlQuota) {
    o.string("path", Some(&q.path));
    o.plain("used_bytes", q.used_bytes);
    o.number("limit_bytes", Some(q.limit_bytes).filter(|n| *n != 0));
    o.plain("used_inodes", q.used_inodes);
    o.number("limit_inodes", Some(q.limit_inodes).filter(|n| *n != 0));
    o.plain("counting", q.counting);
}

fn json_log(o: &mut Object, l: &CtlLog) {
    o.plain("first", l.first);
    o.plain("last", l.last);
    o.plain("flushed", l.flushed);
    o.plain("committed", l.committed);
    o.plain("applied", l.applied);
    o.plain("checkpoint", l.checkpoint);
    o.plain("floor", l.floor);
    o.plain("segments", l.segments);
    o.plain("spare", l.spare);
    o.plain("bytes", l.bytes);
    o.plain("limit", l.limit);
    o.plain("groups", l.groups);
    o.plain("flushes", l.flushes);
    o.plain("written", l.written);
    o.plain("checkpoints", l.checkpoints);
}

fn role(role: Role) -> Option<&'static str> {
    Some(match role {
        Role::Leader => "leader",
        Role::Follower => "follower",
        Role::Candidate => "candidate",
        Role::Learner => "learner",
        Role::Unknown => return None,
    })
}

/// A JSON object being written.
#[derive(Default)]
struct Object(String);

impl Object {
    fn field(&mut self, name: &str, value: &str) {
        self.0.push(if self.0.is_empty() { '{' } else { ',' });
        let _ = write!(self.0, "\"{name}\":{value}");
    }

    /// A number, true or false.
    fn plain(&mut self, name: &str, value: impl fmt::Display) {
        self.field(name, &value.to_string());
    }

    fn number(&mut self, name: &str, value: Option<u64>) {
        self.field(name, &value.map_or("null".into(), |n| n.to_string()));
    }

    fn string(&mut self, name: &str, value: Option<&str>) {
        self.field(name, &value.map_or("null".into(), quoted));
    }

    fn list<T>(&mut self, name: &str, records: &[T], fields: fn(&mut Object, &T)) {
        let objects: Vec<String> = records
            .iter()
            .map(|record| {
                let mut object = Object::default();
                fields(&mut object, record);
                object.close()
            })
            .collect();
        self.field(name, &format!("[{}]", objects.join(",")));
    }

    fn close(mut self) -> String {
        if self.0.is_empty() {
            self.0.push('{');
        }
        self.0 + "}"
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out + "\""
}
