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

//! dfsd.conf(5): lexer and recursive descent.  Runs in dfsd, the parent, as
//! root.  It reads the file and what it includes and resolves host names; it
//! never starts, binds or mounts anything, and it reports every error it finds
//! before it gives up.

#![forbid(unsafe_code)]

use crate::printconf;
use common::conf::{self, parse_size, Conf, Mount, MountId, Peer, DEFAULTS};
use common::fs::NodeId;
use common::sys::privilege;
use common::{log, log_warnx};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// One statement of the file or one option of a block.  The first word of the
/// name finds it in its table, which must be sorted.
struct Entry<T: 'static> {
    name: &'static str,
    /// May stand more than once.
    many: bool,
    parse: fn(&mut Parser, &mut T, &At) -> Parsed<()>,
}

const fn one<T>(name: &'static str, parse: fn(&mut Parser, &mut T, &At) -> Parsed<()>) -> Entry<T> {
    Entry {
        name,
        many: false,
        parse,
    }
}

const fn many<T>(
    name: &'static str,
    parse: fn(&mut Parser, &mut T, &At) -> Parsed<()>,
) -> Entry<T> {
    Entry {
        name,
        many: true,
        parse,
    }
}

const STATEMENTS: &[Entry<Draft>] = &[
    one("cluster", Parser::cluster),
    one("data", Parser::data),
    many("include", Parser::include),
    one("listen on", Parser::listen),
    one("lock lease", Parser::lock_lease),
    one("log limit", Parser::log_limit),
    many("mount", Parser::mount),
    one("node", Parser::node),
    many("peer", Parser::peer),
    one("reserve", Parser::reserve),
    one("socket", Parser::socket),
];

const PEER_OPTIONS: &[Entry<PeerOptions>] = &[
    one("descr", |p, peer, at| {
        peer.descr = Some(p.label("descr", at)?);
        Ok(())
    }),
    one("id", |p, peer, at| {
        peer.id = Some(NodeId(p.number("id", conf::NODE_RANGE, at)?));
        Ok(())
    }),
];

const MOUNT_OPTIONS: &[Entry<Mount>] = &[
    one("async close", |p, mount, _| {
        p.yesno("async close", &mut mount.async_close)
    }),
    one("auto", |p, mount, _| p.yesno("auto", &mut mount.auto)),
    one("dirty", |p, mount, _| p.yesno("dirty", &mut mount.dirty)),
    one("local lock", |p, mount, _| {
        p.yesno("local lock", &mut mount.local_lock)
    }),
    one("maxage", |p, mount, at| {
        let seconds = p.number("maxage", conf::MAXAGE_RANGE, at)?;
        mount.maxage = Some(Duration::from_secs(seconds));
        Ok(())
    }),
    one("noatime", |p, mount, _| {
        p.yesno("noatime", &mut mount.noatime)
    }),
    one("nodev", |p, mount, _| p.yesno("nodev", &mut mount.nodev)),
    one("noexec", |p, mount, _| p.yesno("noexec", &mut mount.noexec)),
    one("nosuid", |p, mount, _| p.yesno("nosuid", &mut mount.nosuid)),
    one("read only", |p, mount, _| {
        p.yesno("read only", &mut mount.read_only)
    }),
    one("strict", |p, mount, _| p.yesno("strict", &mut mount.strict)),
    one("subtree", |p, mount, at| {
        mount.subtree = p.path("subtree", conf::PATH_MAX, at)?;
        Ok(())
    }),
    one("timeout", |p, mount, at| {
        mount.timeout = Duration::from_secs(p.number("timeout", conf::TIMEOUT_RANGE, at)?);
        Ok(())
    }),
];

fn read_config(path: &Path, macros: &[(String, String)]) -> Result<Conf, Vec<String>> {
    let file: Rc<str> = path.display().to_string().into();
    let (text, id) = read_file(path).map_err(|e| vec![format!("{file}: {e}")])?;
    let mut parser = Parser::new(file.clone(), lex(&text), macros);
    parser.open.push(id);
    let mut draft = Draft::default();
    parser.statements(&mut draft);
    parser.finish(&file, draft)
}

/// Reads the configuration, with macros that the command line has set.  All
/// errors go to the log, which is stderr until dfsd is a daemon.
pub fn parse_config(path: &Path, macros: &[(String, String)]) -> Result<Conf, ()> {
    let conf = read_config(path, macros).map_err(|errors| {
        for error in errors {
            log_warnx!("{error}");
        }
    })?;
    if log::log_verbose() {
        for warning in warnings(&conf) {
            log_warnx!("warning: {warning}");
        }
    }
    Ok(conf)
}

/// What is allowed but hardly meant.
fn warnings(conf: &Conf) -> Vec<String> {
    let mut out = Vec::new();
    let voters = conf.peers.len();
    if voters.is_multiple_of(2) {
        out.push(format!(
            "{voters} voters survive the loss of no more nodes than {}",
            voters - 1
        ));
    }
    let local = conf.peers.iter().filter(|p| p.addr.ip().is_loopback());
    if local.clone().count() < voters {
        for peer in local {
            let (id, ip) = (peer.id, peer.addr.ip());
            out.push(format!("peer {id}: other nodes cannot reach {ip}"));
        }
    }
    out
}

/// Device and inode: the same for one file under two names.
type FileId = (u64, u64);

/// Opens first and checks what was opened, so that nothing changes between.
fn read_file(path: &Path) -> Result<(String, FileId), String> {
    let mut file = File::open(path).map_err(|e| reason(&e))?;
    let meta = file.metadata().map_err(|e| reason(&e))?;
    check_file_secrecy(&meta)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| reason(&e))?;
    let text = String::from_utf8(bytes).map_err(|_| "not UTF-8".to_string())?;
    Ok((text, (meta.dev(), meta.ino())))
}

/// Who can write this file decides what root does.  Others than root can only
/// check one, which need not be their own.
fn check_file_secrecy(meta: &Metadata) -> Result<(), String> {
    if privilege::is_root() && meta.uid() != 0 {
        return Err("owner not root".into());
    }
    if meta.mode() & 0o022 != 0 {
        return Err("group or world writable".into());
    }
    Ok(())
}

/// The text of strerror(3); std appends the number.
fn reason(e: &io::Error) -> String {
    let text = e.to_string();
    match text.split_once(" (os error") {
        Some((reason, _)) => reason.to_string(),
        None => text,
    }
}

/// Where something stands.
#[derive(Clone, PartialEq)]
struct At {
    file: Rc<str>,
    line: u32,
}

impl At {
    /// "line 2", or "other.conf:2" when that is not the file of the error.
    fn seen_from(&self, other: &At) -> String {
        if self.file == other.file {
            format!("line {}", self.line)
        } else {
            self.to_string()
        }
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

#[derive(Clone, PartialEq)]
enum Kind {
    Word(String),
    Quoted(String),
    Macro(String),
    Open,
    Close,
    Equal,
    Newline,
    End,
    /// Not a token; the text says why.  The rest of its line is dropped.
    Bad(String),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Word(s) | Kind::Quoted(s) => write!(f, "\"{s}\""),
            Kind::Macro(s) => write!(f, "\"${s}\""),
            Kind::Open => f.write_str("\"{\""),
            Kind::Close => f.write_str("\"}\""),
            Kind::Equal => f.write_str("\"=\""),
            Kind::Newline => f.write_str("end of line"),
            Kind::End => f.write_str("end of file"),
            Kind::Bad(s) => f.write_str(s),
        }
    }
}

struct Token {
    kind: Kind,
    line: u32,
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Cuts a text into tokens.  The last two are always Newline and End, so that
/// a last line without a newline is a line.
fn lex(text: &str) -> VecDeque<Token> {
    let mut chars = text.chars().peekable();
    let mut tokens = VecDeque::new();
    let mut line = 1;
    while let Some(c) = chars.next() {
        let kind = match c {
            ' ' | '\t' => continue,
            '\\' if chars.next_if_eq(&'\n').is_some() => {
                line += 1;
                continue;
            }
            '#' => {
                while chars.next_if(|&c| c != '\n').is_some() {}
                continue;
            }
            '\n' => Kind::Newline,
            '{' => Kind::Open,
            '}' => Kind::Close,
            '=' => Kind::Equal,
            '"' | '\'' => lex_quoted(c, &mut chars),
            '$' => Kind::Macro(take_while(String::new(), &mut chars, is_macro_char)),
            c if is_word_char(c) => Kind::Word(take_while(c.into(), &mut chars, is_word_char)),
            c => Kind::Bad(format!("unexpected character {c:?}")),
        };
        let kind = check_end(kind, &mut chars);
        if let Kind::Bad(_) = kind {
            while chars.next_if(|&c| c != '\n').is_some() {}
        }
        let newline = kind == Kind::Newline;
        tokens.push_back(Token { kind, line });
        line += u32::from(newline);
    }
    tokens.push_back(Token {
        kind: Kind::Newline,
        line,
    });
    tokens.push_back(Token {
        kind: Kind::End,
        line,
    });
    tokens
}

/// A quoted string ends on its line.  \" and \\ stand for " and \.
fn lex_quoted(quote: char, chars: &mut Chars<'_>) -> Kind {
    let mut text = String::new();
    loop {
        match chars.next_if(|&c| c != '\n') {
            None => return Kind::Bad("missing closing quote".into()),
            Some(c) if c == quote => return Kind::Quoted(text),
            Some('\\') => text.push(chars.next_if(|&c| c == quote || c == '\\').unwrap_or('\\')),
            // It would travel into logs, titles and mount tables.
            Some(c) if c.is_control() => {
                return Kind::Bad(format!("unexpected character {c:?}"));
            }
            Some(c) => text.push(c),
        }
    }
}

/// Things like a$b or "a""b" have no meaning that all would expect.
fn check_end(kind: Kind, chars: &mut Chars<'_>) -> Kind {
    let (Kind::Word(_) | Kind::Quoted(_) | Kind::Macro(_)) = kind else {
        return kind;
    };
    if kind == Kind::Macro(String::new()) {
        return Kind::Bad("missing name after \"$\"".into());
    }
    match chars.peek() {
        None | Some(' ' | '\t' | '\n' | '{' | '}' | '=' | '#' | '\\') => kind,
        Some(&c) => Kind::Bad(format!("unexpected character {c:?} after {kind}")),
    }
}

fn take_while(mut text: String, chars: &mut Chars<'_>, allowed: fn(char) -> bool) -> String {
    while let Some(c) = chars.next_if(|&c| allowed(c)) {
        text.push(c);
    }
    text
}

fn is_word_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '/' | '-')
}

fn is_macro_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// What the statements have said so far.
#[derive(Default)]
struct Draft {
    cluster: String,
    node: Option<(NodeId, At)>,
    listen: Option<(IpAddr, Option<u16>)>,
    data: Option<(PathBuf, At)>,
    socket: Option<(PathBuf, At)>,
    lock_lease: Option<Duration>,
    log_limit: Option<u64>,
    reserve: Option<u64>,
    peers: Vec<(Peer, At)>,
    mounts: Vec<(Mount, At)>,
}

#[derive(Default)]
struct PeerOptions {
    id: Option<NodeId>,
    descr: Option<String>,
}

/// An error that has been noted already: find the end of the statement, go on.
struct Noted;

type Parsed<T> = Result<T, Noted>;

struct Macro {
    value: String,
    /// From the command line: the file does not change it.
    fixed: bool,
}

struct Parser {
    file: Rc<str>,
    tokens: VecDeque<Token>,
    macros: BTreeMap<String, Macro>,
    errors: Vec<String>,
    /// By block, 0 being none, and name.
    seen: BTreeMap<(u32, &'static str), At>,
    blocks: u32,
    /// The files being read, each included by the one before.
    open: Vec<FileId>,
}

/// The tokens.
impl Parser {
    fn new(file: Rc<str>, tokens: VecDeque<Token>, macros: &[(String, String)]) -> Parser {
        let fixed = |value: &String| Macro {
            value: value.clone(),
            fixed: true,
        };
        Parser {
            file,
            tokens,
            macros: macros
                .iter()
                .map(|(name, value)| (name.clone(), fixed(value)))
                .collect(),
            errors: Vec::new(),
            seen: BTreeMap::new(),
            blocks: 0,
            open: Vec::new(),
        }
    }

    fn note(&mut self, at: &At, text: impl fmt::Display) -> Noted {
        self.errors.push(format!("{at}: {text}"));
        Noted
    }

    /// The next token, macros expanded; it stays where it is.
    fn peek(&mut self) -> Kind {
        loop {
            match self.tokens.front() {
                Some(Token {
                    kind: Kind::Macro(name),
                    line,
                }) => {
                    let (name, line) = (name.clone(), *line);
                    self.tokens.pop_front();
                    self.expand(&name, line);
                }
                Some(token) => return token.kind.clone(),
                None => return Kind::End,
            }
        }
    }

    /// Puts the tokens of a macro in front.  They hold no further macros.
    fn expand(&mut self, name: &str, line: u32) {
        let kinds = match self.macros.get(name) {
            None => vec![Kind::Bad(format!("macro '{name}' not defined"))],
            Some(m) => {
                let mut tokens = lex(&m.value);
                tokens.truncate(tokens.len().saturating_sub(2));
                tokens.into_iter().map(|t| t.kind).collect()
            }
        };
        for kind in kinds.into_iter().rev() {
            let kind = match kind {
                Kind::Newline | Kind::Macro(_) => {
                    Kind::Bad(format!("unexpected {kind} in macro '{name}'"))
                }
                kind => kind,
            };
            self.tokens.push_front(Token { kind, line });
        }
    }

    fn at(&self) -> At {
        let line = self.tokens.front().map_or(0, |t| t.line);
        At {
            file: self.file.clone(),
            line,
        }
    }

    /// The next token is not what it should be.  It is left for skip(), which
    /// must see every brace and newline.
    fn expected(&mut self, wanted: &str) -> Noted {
        let kind = self.peek();
        let at = self.at();
        match kind {
            Kind::Bad(text) => self.note(&at, text),
            kind => self.note(&at, format!("expected {wanted}, found {kind}")),
        }
    }

    fn take(&mut self, kind: &Kind) -> bool {
        let found = self.peek() == *kind;
        if found {
            self.tokens.pop_front();
        }
        found
    }

    fn word(&mut self, wanted: &str) -> Parsed<String> {
        match self.peek() {
            Kind::Word(word) => {
                self.tokens.pop_front();
                Ok(word)
            }
            _ => Err(self.expected(wanted)),
        }
    }

    fn string(&mut self, wanted: &str) -> Parsed<String> {
        match self.peek() {
            Kind::Word(text) | Kind::Quoted(text) => {
                self.tokens.pop_front();
                Ok(text)
            }
            _ => Err(self.expected(wanted)),
        }
    }

    fn end_of_line(&mut self) -> Parsed<()> {
        if self.take(&Kind::Newline) {
            return Ok(());
        }
        Err(self.expected("end of line"))
    }

    fn statement_follows(&self) -> bool {
        match (self.tokens.get(1), self.tokens.get(2)) {
            (
                Some(Token {
                    kind: Kind::Word(word),
                    ..
                }),
                Some(next),
            ) => next.kind == Kind::Equal || lookup(STATEMENTS, word).is_some(),
            _ => false,
        }
    }

    /// After an error: to the end of the statement, over the blocks in it, or
    /// to the end of the option or of the block that it stands in.
    fn skip(&mut self, in_block: bool) {
        let mut depth = 0u32;
        while let Some(token) = self.tokens.front() {
            match token.kind {
                Kind::End => return,
                Kind::Newline if depth == 0 => return,
                Kind::Close if depth == 0 && in_block => return,
                // Its brace is missing, or was never meant.
                Kind::Newline if self.statement_follows() => return,
                Kind::Open => depth += 1,
                Kind::Close => depth = depth.saturating_sub(1),
                _ => (),
            }
            self.tokens.pop_front();
        }
    }
}

/// Statements, blocks and macros.
impl Parser {
    fn statements(&mut self, draft: &mut Draft) {
        loop {
            match self.peek() {
                Kind::End => return,
                Kind::Newline => {
                    self.tokens.pop_front();
                }
                _ => {
                    if self.statement(draft).is_err() {
                        self.skip(false);
                    }
                }
            }
        }
    }

    fn statement(&mut self, draft: &mut Draft) -> Parsed<()> {
        let at = self.at();
        let word = self.word("a statement")?;
        if self.take(&Kind::Equal) {
            self.define(word, &at)?;
        } else {
            self.entry("statement", STATEMENTS, 0, &word, draft, &at)?;
        }
        self.end_of_line()
    }

    fn define(&mut self, name: String, at: &At) -> Parsed<()> {
        if !name.chars().all(is_macro_char) {
            return Err(self.note(at, format!("bad macro name \"{name}\"")));
        }
        let value = self.string("a macro value")?;
        if !self.macros.get(&name).is_some_and(|m| m.fixed) {
            self.macros.insert(
                name,
                Macro {
                    value,
                    fixed: false,
                },
            );
        }
        Ok(())
    }

    fn entry<T>(
        &mut self,
        what: &str,
        table: &'static [Entry<T>],
        block: u32,
        word: &str,
        into: &mut T,
        at: &At,
    ) -> Parsed<()> {
        let Some(entry) = lookup(table, word) else {
            return Err(self.note(at, format!("unknown {what} \"{word}\"")));
        };
        for part in entry.name.split(' ').skip(1) {
            if !self.take(&Kind::Word(part.into())) {
                return Err(self.expected(&format!("\"{part}\"")));
            }
        }
        let key = (block, entry.name);
        if let Some(first) = self.seen.get(&key).filter(|_| !entry.many) {
            let line = first.seen_from(at);
            self.note(at, format!("{} already set at {line}", entry.name));
        } else {
            self.seen.insert(key, at.clone());
        }
        (entry.parse)(self, into, at)
    }

    /// The options of a block, each on a line of its own.
    fn block<T>(&mut self, what: &str, table: &'static [Entry<T>], into: &mut T) -> Parsed<()> {
        let opened = self.at().line;
        if !self.take(&Kind::Open) {
            return Err(self.expected("\"{\""));
        }
        self.blocks += 1;
        let block = self.blocks;
        loop {
            match self.peek() {
                Kind::Newline => {
                    self.tokens.pop_front();
                }
                Kind::Close => {
                    self.tokens.pop_front();
                    return Ok(());
                }
                Kind::End => return Err(self.unclosed(opened)),
                Kind::Word(word) if lookup(STATEMENTS, &word).is_some() => {
                    self.unclosed(opened);
                    // The statement that follows is read as one.
                    let line = self.at().line;
                    self.tokens.push_front(Token {
                        kind: Kind::Newline,
                        line,
                    });
                    return Ok(());
                }
                _ => {
                    if self.option(what, table, block, into).is_err() {
                        self.skip(true);
                    }
                }
            }
        }
    }

    fn unclosed(&mut self, opened: u32) -> Noted {
        let found = self.peek();
        let at = self.at();
        self.note(
            &at,
            format!("missing \"}}\" for line {opened} before {found}"),
        )
    }

    fn option<T>(
        &mut self,
        what: &str,
        table: &'static [Entry<T>],
        block: u32,
        into: &mut T,
    ) -> Parsed<()> {
        let at = self.at();
        let word = self.word(&format!("a {what} option"))?;
        self.entry(&format!("{what} option"), table, block, &word, into, &at)?;
        match self.peek() {
            Kind::Newline | Kind::Close => Ok(()),
            _ => Err(self.expected("end of line")),
        }
    }

    /// A relative name is looked up beside the file that includes it.
    fn include(&mut self, draft: &mut Draft, at: &At) -> Parsed<()> {
        let name = self.string("a file name")?;
        let path = match Path::new(&*self.file).parent() {
            Some(dir) => dir.join(&name),
            None => PathBuf::from(&name),
        };
        let (text, id) = match read_file(&path) {
            Ok((_, id)) if self.open.contains(&id) => {
                return Err(self.note(at, format!("include {}: includes itself", show(&name))));
            }
            Ok(read) => read,
            Err(e) => return Err(self.note(at, format!("include {}: {e}", show(&name)))),
        };
        let file = std::mem::replace(&mut self.file, path.display().to_string().into());
        let tokens = std::mem::replace(&mut self.tokens, lex(&text));
        self.open.push(id);
        self.statements(draft);
        self.open.pop();
        self.file = file;
        self.tokens = tokens;
        Ok(())
    }
}

fn lookup<T>(table: &'static [Entry<T>], word: &str) -> Option<&'static Entry<T>> {
    let first = |entry: &'static Entry<T>| entry.name.split(' ').next().unwrap_or_default();
    let i = table
        .binary_search_by(|entry| first(entry).cmp(word))
        .ok()?;
    table.get(i)
}

/// Values.
impl Parser {
    fn number(&mut self, what: &str, range: RangeInclusive<u64>, at: &At) -> Parsed<u64> {
        let text = self.string("a number")?;
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(self.note(at, format!("{what} {}: not a number", show(&text))));
        }
        match text.parse() {
            Ok(n) if range.contains(&n) => Ok(n),
            _ => {
                let (low, high) = range.into_inner();
                Err(self.note(at, format!("{what} {text}: out of range ({low} to {high})")))
            }
        }
    }

    fn size(&mut self, what: &str, range: RangeInclusive<u64>, at: &At) -> Parsed<u64> {
        let text = self.string("a size")?;
        match parse_size(&text) {
            None => Err(self.note(at, format!("{what} {}: not a size", show(&text)))),
            Some(Some(n)) if range.contains(&n) => Ok(n),
            Some(_) => {
                let (low, high) = (
                    printconf::size(*range.start()),
                    printconf::size(*range.end()),
                );
                Err(self.note(at, format!("{what} {text}: out of range ({low} to {high})")))
            }
        }
    }

    fn yesno(&mut self, what: &str, into: &mut bool) -> Parsed<()> {
        let yes = self.take(&Kind::Word("yes".into()));
        if !yes && !self.take(&Kind::Word("no".into())) {
            return Err(self.expected(&format!("yes or no after {what}")));
        }
        *into = yes;
        Ok(())
    }

    fn label(&mut self, what: &str, at: &At) -> Parsed<String> {
        let text = self.string("a string")?;
        if text.is_empty() || text.len() > conf::LABEL_MAX {
            let text = format!("{what}: must be 1 to {} bytes long", conf::LABEL_MAX);
            return Err(self.note(at, text));
        }
        Ok(text)
    }

    fn path(&mut self, what: &str, longest: usize, at: &At) -> Parsed<PathBuf> {
        let text = self.string("a path")?;
        match check_path(&text, longest) {
            Ok(()) => Ok(text.into()),
            Err(e) => Err(self.note(at, format!("{what} {}: {e}", show(&text)))),
        }
    }

    fn address(&mut self, what: &str, at: &At) -> Parsed<IpAddr> {
        let text = self.string("an address")?;
        resolve(&text).map_err(|e| self.note(at, format!("{what} {}: {e}", show(&text))))
    }

    fn port(&mut self, at: &At) -> Parsed<Option<u16>> {
        if !self.take(&Kind::Word("port".into())) {
            return Ok(None);
        }
        let port = self.number("port", conf::PORT_RANGE, at)?;
        Ok(u16::try_from(port).ok())
    }
}

/// A string as it would stand in the file.
fn show(text: &str) -> String {
    if !text.is_empty() && text.chars().all(is_word_char) {
        text.to_string()
    } else {
        printconf::quote(text)
    }
}

/// One spelling for each path, so that equal paths are equal texts.
fn check_path(text: &str, longest: usize) -> Result<(), String> {
    let Some(rest) = text.strip_prefix('/') else {
        return Err("not an absolute path".into());
    };
    if text.len() > longest {
        return Err(format!("longer than {longest} bytes"));
    }
    if !rest.is_empty() && rest.split('/').any(|name| matches!(name, "" | "." | "..")) {
        return Err("has \"//\", \".\", \"..\" or a final \"/\"".into());
    }
    Ok(())
}

/// A numeric address or the first one that a host name has.
fn resolve(text: &str) -> Result<IpAddr, String> {
    let ip = match text.parse::<IpAddr>() {
        Ok(ip) => ip,
        Err(_) if !is_host_name(text) => return Err("not an address or a host name".into()),
        Err(_) => {
            let mut found = (text, 0).to_socket_addrs().map_err(|e| reason(&e))?;
            found.next().ok_or("host name without address")?.ip()
        }
    };
    match ip.to_canonical() {
        ip if ip.is_multicast() || is_broadcast(ip) => Err("not the address of a node".into()),
        // It would be another machine on each machine.
        IpAddr::V6(ip) if ip.is_unicast_link_local() => Err("link-local address".into()),
        ip => Ok(ip),
    }
}

/// Without this getaddrinfo(3) would read "1" or "0x7f.1" as addresses.
fn is_host_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let last = text
        .trim_end_matches('.')
        .rsplit('.')
        .next()
        .unwrap_or_default();
    let number = last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x");
    text.chars().all(allowed) && !number
}

fn is_broadcast(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if ip.is_broadcast())
}

/// The statements, in the order of dfsd.conf(5).
impl Parser {
    fn cluster(&mut self, draft: &mut Draft, at: &At) -> Parsed<()> {
        let name = self.label("cluster", at)?;
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if !name.chars().all(allowed) {
            let text = format!(
                "cluster {}: not only letters, digits, \".\", \"_\" and \"-\"",
                show(&name)
            );
            return Err(self.note(at, text));
        }
        draft.cluster = name;
        Ok(())
    }

    fn node(&mut self, draft: &mut Draft, at: &At) -> Parsed<()> {
        let id = self.number("node", conf::NODE_RANGE, at)?;
        draft.node = Some((NodeId(id), at.clone()));
        Ok(())
    }

    fn listen(&mut self, draft: &mut Draft, at: &At) -> Parsed<()> {
        let ip = self.address("listen on", at)?;
        draft.listen = Some((ip, self.port(at)?));
        Ok(())
    }

    fn data(&mut self, draft: &mut Draft, at: &At) -> Parsed<()> {
        let path = self.path("data", conf::PATH_MAX, at)?;
        draft.data = Some((path, at.clone()));
        Ok(())
    }

    fn socket(&mut self, draft: &mut Draft, at: &At) -> Parsed<()> {
        let path = self.path("socket", conf::SOCKET_PATH_MAX, at)?;
        draft.socket = Some((path, at.clone()));
        Ok(())
    }

    fn lock_lease(&mut self, draft: &mut Draft, at: &At) -> Parsed<()> {
        let seconds = self.number("lock lease", conf::LOCK_LEASE_RANGE, at)?;
        draft.lock_lease = Some(Duration::from_secs(seconds));
        Ok(())
    }

    fn log_limit(&mut self, draft: &mut Draft, at: &At) -> Parsed<()> {
        draft.log_limit = Some(self.size("log limit", conf::LOG_LIMIT_RANGE, at)?);
        Ok(())
    }

    fn reserve(&mut self, draft: &mut Draft, at: &At) -> Parsed<()> {
        draft.reserve = Some(self.size("reserve", conf::RESERVE_RANGE, at)?);
        Ok(())
    }

    fn peer(&mut self, draft: &mut Draft, at: &At) -> Parsed<()> {
        let ip = self.address("peer", at)?;
        let port = self.port(at)?.unwrap_or(DEFAULTS.port);
        let before = self.errors.len();
        let mut options = PeerOptions::default();
        self.block("peer", PEER_OPTIONS, &mut options)?;
        let addr = SocketAddr::new(ip, port);
        match options.id {
            Some(id) => {
                let peer = Peer {
                    id,
                    addr,
                    descr: options.descr,
                };
                self.add_peer(draft, peer, at);
            }
            None if self.errors.len() == before => {
                self.note(at, format!("peer {}: no id", printconf::addr(addr)));
            }
            None => (),
        }
        Ok(())
    }

    fn add_peer(&mut self, draft: &mut Draft, peer: Peer, at: &At) {
        if peer.addr.ip().is_unspecified() {
            self.note(
                at,
                format!("peer {}: not the address of a node", peer.addr.ip()),
            );
        }
        if let Some((_, first)) = draft.peers.iter().find(|(p, _)| p.id == peer.id) {
            let line = first.seen_from(at);
            self.note(at, format!("peer id {} already used at {line}", peer.id));
        }
        if let Some((_, first)) = draft.peers.iter().find(|(p, _)| p.addr == peer.addr) {
            let (addr, line) = (printconf::addr(peer.addr), first.seen_from(at));
            self.note(at, format!("peer {addr} already used at {line}"));
        }
        if draft.peers.len() == conf::VOTERS_MAX {
            self.note(at, format!("more than {} peers", conf::VOTERS_MAX));
        }
        draft.peers.push((peer, at.clone()));
    }

    fn mount(&mut self, draft: &mut Draft, at: &At) -> Parsed<()> {
        let point = self.path("mount", conf::PATH_MAX, at)?;
        let mut mount = Mount {
            id: MountId(u32::try_from(draft.mounts.len()).unwrap_or(u32::MAX)),
            point,
            subtree: DEFAULTS.subtree.into(),
            read_only: DEFAULTS.read_only,
            timeout: DEFAULTS.timeout,
            nosuid: DEFAULTS.nosuid,
            nodev: DEFAULTS.nodev,
            noexec: DEFAULTS.noexec,
            noatime: DEFAULTS.noatime,
            strict: DEFAULTS.strict,
            dirty: DEFAULTS.dirty,
            maxage: None,
            local_lock: DEFAULTS.local_lock,
            async_close: DEFAULTS.async_close,
            auto: DEFAULTS.auto,
        };
        if self.peek() == Kind::Open {
            self.block("mount", MOUNT_OPTIONS, &mut mount)?;
        }
        self.add_mount(draft, mount, at);
        Ok(())
    }

    /// One mount inside another is refused: dfsd would have to walk through the
    /// outer one, which only answers once the cluster does.
    fn add_mount(&mut self, draft: &mut Draft, mount: Mount, at: &At) {
        let point = mount.point.display();
        if mount.strict && mount.dirty {
            self.note(at, format!("mount {point}: strict and dirty"));
        }
        if mount.maxage.is_some() && !mount.dirty {
            self.note(at, format!("mount {point}: maxage without dirty"));
        }
        if mount.point == Path::new("/") {
            self.note(at, "mount /: not a mount point");
            return;
        }
        let other = draft
            .mounts
            .iter()
            .find(|(m, _)| overlap(&m.point, &mount.point));
        if let Some((other, first)) = other {
            let line = first.seen_from(at);
            let text = if other.point == mount.point {
                format!("mount point {point} already used at {line}")
            } else {
                format!(
                    "mount point {point} overlaps {} at {line}",
                    other.point.display()
                )
            };
            self.note(at, text);
        }
        if draft.mounts.len() == conf::MOUNTS_MAX {
            self.note(at, format!("more than {} mounts", conf::MOUNTS_MAX));
        }
        draft.mounts.push((mount, at.clone()));
    }
}

fn overlap(a: &Path, b: &Path) -> bool {
    a.starts_with(b) || b.starts_with(a)
}

/// The end of the file.
impl Parser {
    fn finish(mut self, file: &str, draft: Draft) -> Result<Conf, Vec<String>> {
        for name in ["cluster", "node", "peer"] {
            if !self.seen.contains_key(&(0, name)) {
                self.errors.push(format!("{file}: no {name} statement"));
            }
        }
        let (data, data_at) = draft.data.unzip();
        let (socket, socket_at) = draft.socket.unzip();
        let data = data.unwrap_or_else(|| DEFAULTS.data.into());
        let socket = socket.unwrap_or_else(|| DEFAULTS.socket.into());
        self.check_paths(
            &draft.mounts,
            &data,
            data_at.as_ref(),
            &socket,
            socket_at.as_ref(),
        );
        // With an error above, the peer may be there and wrong.
        let own = match (&draft.node, self.errors.is_empty()) {
            (Some((node, at)), true) => {
                let own = draft.peers.iter().find(|(p, _)| p.id == *node);
                if own.is_none() {
                    self.note(at, format!("node {node}: no peer has this id"));
                }
                own.map(|(peer, _)| (*node, peer.addr))
            }
            _ => None,
        };
        let Some((node, addr)) = own.filter(|_| self.errors.is_empty()) else {
            return Err(self.errors);
        };
        let listen = match draft.listen {
            Some((ip, port)) => SocketAddr::new(ip, port.unwrap_or(addr.port())),
            None => addr,
        };
        Ok(Conf {
            cluster: draft.cluster,
            node,
            listen,
            data,
            socket,
            lock_lease: draft.lock_lease.unwrap_or(DEFAULTS.lock_lease),
            log_limit: draft.log_limit.unwrap_or(DEFAULTS.log_limit),
            reserve: draft.reserve.unwrap_or(DEFAULTS.reserve),
            peers: draft.peers.into_iter().map(|(peer, _)| peer).collect(),
            mounts: draft.mounts.into_iter().map(|(mount, _)| mount).collect(),
        })
    }

    /// The database must not be replicated, nor hidden; dfsctl(8) must find the
    /// socket when nothing else answers.
    fn check_paths(
        &mut self,
        mounts: &[(Mount, At)],
        data: &Path,
        data_at: Option<&At>,
        socket: &Path,
        socket_at: Option<&At>,
    ) {
        if let Some(at) = data_at.filter(|_| data == Path::new("/")) {
            self.note(at, "data /: not a directory for dfsd alone");
        }
        if socket.starts_with(data) {
            if let Some(at) = socket_at.or(data_at) {
                let text = format!("socket {} is in {}", socket.display(), data.display());
                self.note(at, text);
            }
        }
        for (mount, at) in mounts {
            let point = mount.point.display();
            if overlap(&mount.point, data) {
                let data = data.display();
                self.note(at, format!("mount point {point} overlaps data {data}"));
            }
            if socket.starts_with(&mount.point) {
                let socket = socket.display();
                self.note(at, format!("mount point {point} hides socket {socket}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted<T>(table: &'static [Entry<T>]) -> bool {
        table.is_sorted_by_key(|entry| entry.name)
            && table.iter().all(|entry| {
                let first = entry.name.split(' ').next();
                lookup(table, first.unwrap()).is_some_and(|found| found.name == entry.name)
            })
    }

    #[test]
    fn tables_are_sorted() {
        assert!(sorted(STATEMENTS));
        assert!(sorted(PEER_OPTIONS));
        assert!(sorted(MOUNT_OPTIONS));
    }

    #[test]
    fn sizes_print_and_parse_back() {
        for n in [
            0,
            1,
            1023,
            1 << 10,
            1025,
            3 << 20,
            5 << 30,
            7 << 40,
            u64::MAX,
            1 << 63,
        ] {
            assert_eq!(parse_size(&printconf::size(n)), Some(Some(n)));
        }
        assert_eq!(parse_size("16777216T"), Some(None));
        for text in ["", "K", "1KB", "-1", "1.5G", "1 G", "0x10", "1E"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}
