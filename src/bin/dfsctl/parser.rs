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

//! The commands of dfsctl(8): tables, and the one function that matches words
//! against them.  Runs in dfsctl; it never prints, connects or exits.

#![forbid(unsafe_code)]

use crate::getopt::getopt;
use common::conf::parse_size;
use common::ctl::CtlReq;
use common::log::reason;
use std::ffi::OsString;
use std::fmt;
use std::path::{Component, PathBuf};

/// What fits a request.
const PATH_MAX: usize = 4096;

/// One word of a command: what to ask when it is the last, or the words that
/// may follow.
struct Token {
    word: &'static str,
    then: Then,
}

enum Then {
    Ask(CtlReq),
    /// Options and operands of its own.
    Parse(fn(&[String]) -> Result<CtlReq, Invalid>),
    Next(&'static [Token]),
    /// The words behind it are no words of ours.
    Lock,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'a> {
    Ask(CtlReq),
    /// The arguments of dfsctl lock.
    Lock(&'a [String]),
}

const fn ask(word: &'static str, req: CtlReq) -> Token {
    Token {
        word,
        then: Then::Ask(req),
    }
}

const fn parsed(word: &'static str, by: fn(&[String]) -> Result<CtlReq, Invalid>) -> Token {
    Token {
        word,
        then: Then::Parse(by),
    }
}

const fn next(word: &'static str, table: &'static [Token]) -> Token {
    Token {
        word,
        then: Then::Next(table),
    }
}

const MAIN: &[Token] = &[
    parsed("cancel", cancel),
    Token {
        word: "lock",
        then: Then::Lock,
    },
    next("log", LOG),
    parsed("quota", quota),
    ask("reload", CtlReq::Reload),
    next("show", SHOW),
    ask("status", CtlReq::ShowSummary),
    ask("stop", CtlReq::Stop),
];

const LOG: &[Token] = &[
    ask("brief", CtlReq::LogVerbose(false)),
    ask("verbose", CtlReq::LogVerbose(true)),
];

const SHOW: &[Token] = &[
    ask("locks", CtlReq::ShowLocks),
    ask("log", CtlReq::ShowLog),
    ask("mounts", CtlReq::ShowMounts),
    ask("peers", CtlReq::ShowPeers),
    ask("summary", CtlReq::ShowSummary),
];

/// Why words are no command, and the words that would have been one here.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid {
    error: String,
    valid: Vec<&'static str>,
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)?;
        if !self.valid.is_empty() {
            f.write_str("\nvalid commands/args:")?;
        }
        for word in &self.valid {
            write!(f, "\n  {word}")?;
        }
        Ok(())
    }
}

fn invalid(error: String, table: &[Token]) -> Invalid {
    Invalid {
        error,
        valid: table.iter().map(|token| token.word).collect(),
    }
}

/// Any beginning of a word will do that is the beginning of no other.
fn match_token<'a>(word: &str, table: &'a [Token]) -> Result<&'a Token, Invalid> {
    if let Some(token) = table.iter().find(|token| token.word == word) {
        return Ok(token);
    }
    let mut found = table.iter().filter(|token| token.word.starts_with(word));
    match (found.next(), found.next()) {
        (Some(token), None) => Ok(token),
        (Some(_), Some(_)) => Err(invalid(format!("ambiguous argument: {word}"), table)),
        (None, _) => Err(invalid(format!("unknown argument: {word}"), table)),
    }
}

pub fn parse(words: &[String]) -> Result<Parsed<'_>, Invalid> {
    let mut table = MAIN;
    let mut words = words;
    loop {
        let (word, rest) = match words.split_first() {
            Some((word, rest)) if !word.is_empty() => (word, rest),
            _ => return Err(invalid("missing argument:".into(), table)),
        };
        match &match_token(word, table)?.then {
            Then::Next(next) => table = next,
            Then::Parse(by) => return by(rest).map(Parsed::Ask),
            Then::Ask(req) => {
                return match rest {
                    [] => Ok(Parsed::Ask(req.clone())),
                    [word, ..] => Err(superfluous(word)),
                }
            }
            Then::Lock => return Ok(Parsed::Lock(rest)),
        }
        words = rest;
    }
}

fn superfluous(word: &str) -> Invalid {
    invalid(format!("superfluous argument: {word}"), &[])
}

/// The words behind `cancel`.
fn cancel(words: &[String]) -> Result<CtlReq, Invalid> {
    match words {
        [] => Err(invalid("missing argument: number".into(), &[])),
        [number] => match number.parse() {
            Ok(number) => Ok(CtlReq::CancelLock(number)),
            Err(_) => Err(invalid(format!("no number: {number}"), &[])),
        },
        [_, word, ..] => Err(superfluous(word)),
    }
}

/// The words behind `quota`.
fn quota(words: &[String]) -> Result<CtlReq, Invalid> {
    let usage = || {
        invalid(
            "usage: dfsctl quota [-d] [-b bytes] [-i inodes] [path]".into(),
            &[],
        )
    };
    let args = getopt(words.iter().map(OsString::from), "b:di:").ok_or_else(usage)?;
    let (mut bytes, mut inodes, mut drops) = (None, None, false);
    for (option, value) in args.options {
        let limit = || match parse_size(&value) {
            Some(Some(n)) => Ok(Some(n)),
            _ => Err(invalid(format!("not a size: {value}"), &[])),
        };
        match option {
            'b' => bytes = limit()?,
            'i' => inodes = limit()?,
            _ => drops = true,
        }
    }
    let sets = bytes.is_some() || inodes.is_some();
    let path = match args.operands.as_slice() {
        [] if sets || drops => return Err(usage()),
        [] => return Ok(CtlReq::ShowQuota(None)),
        [path] => absolute(path)?,
        [_, word, ..] => return Err(superfluous(word)),
    };
    match (sets, drops) {
        (true, true) => Err(usage()),
        (true, false) => Ok(CtlReq::SetQuota {
            path,
            bytes,
            inodes,
        }),
        (false, true) => Ok(CtlReq::DropQuota(path)),
        (false, false) => Ok(CtlReq::ShowQuota(Some(path))),
    }
}

/// A path without `.` and `..`; symbolic links are raftd's to refuse.
fn absolute(path: &str) -> Result<String, Invalid> {
    let bad = |why: &str| invalid(format!("{path}: {why}"), &[]);
    if path.len() > PATH_MAX {
        return Err(bad("path too long"));
    }
    let whole = std::path::absolute(path).map_err(|e| bad(&reason(&e)))?;
    let mut plain = PathBuf::new();
    for part in whole.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    let plain = plain.into_os_string().into_string();
    plain.map_err(|_| bad("not a text"))
}
