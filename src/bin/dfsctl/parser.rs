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

use common::ctl::CtlReq;
use std::fmt;

/// One word of a command: what to ask when it is the last, or the words that
/// may follow.
struct Token {
    word: &'static str,
    then: Then,
}

enum Then {
    Ask(CtlReq),
    Next(&'static [Token]),
}

const fn ask(word: &'static str, req: CtlReq) -> Token {
    Token {
        word,
        then: Then::Ask(req),
    }
}

const fn next(word: &'static str, table: &'static [Token]) -> Token {
    Token {
        word,
        then: Then::Next(table),
    }
}

const MAIN: &[Token] = &[
    next("log", LOG),
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

pub fn parse(words: &[String]) -> Result<CtlReq, Invalid> {
    let mut table = MAIN;
    let mut words = words.iter();
    loop {
        let Some(word) = words.next().filter(|word| !word.is_empty()) else {
            return Err(invalid("missing argument:".into(), table));
        };
        match &match_token(word, table)?.then {
            Then::Next(next) => table = next,
            Then::Ask(req) => {
                return match words.next() {
                    None => Ok(req.clone()),
                    Some(word) => Err(invalid(format!("superfluous argument: {word}"), &[])),
                };
            }
        }
    }
}
