//! An HTTP server for files of a directory, with keep-alive, which can inject faults.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A fault of a response.
#[derive(Debug, Clone)]
pub enum Fault {
    /// This status, with a short body.
    Status(u16),
    /// The connection ends after this number of bytes of the body.
    Cut(usize),
    /// Content-Length is wrong by this number of bytes. Then the connection ends.
    WrongLength(i64),
    /// The body is sent in parts of this length, with this pause in between.
    Slow(usize, Duration),
    /// The body never ends.
    Endless,
    /// A redirect to this URL.
    Redirect(String),
    /// An endless chain of redirects.
    Redirects,
    /// Another body.
    Body(Vec<u8>),
    /// For range requests: a response with this Content-Range and body.
    Part(String, Vec<u8>),
    /// A body with this Content-Encoding.
    Encoded(&'static str, Vec<u8>),
    /// No response until the server ends.
    Hang,
    /// The connection ends without a response.
    Close,
    /// A response that is not HTTP.
    Garbage,
    /// Endless headers.
    EndlessHeaders,
}

/// A fault, for requests whose path contains `part`.
struct Rule {
    part: String,
    fault: Fault,
    /// Number of times. `None`: always.
    times: Option<usize>,
}

#[derive(Default)]
struct Shared {
    rules: Mutex<Vec<Rule>>,
    requests: Mutex<Vec<String>>,
    parts: Mutex<Vec<(String, [usize; 2])>>,
    connections: Mutex<VecDeque<TcpStream>>,
    latency: Mutex<Duration>,
    ends: AtomicBool,
}

/// A running server. Dropping it ends the server.
pub struct HttpServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Serves the files below `dir` on a free port.
    pub fn start(dir: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let (dir, of_thread) = (dir.to_owned(), shared.clone());
        let listener = thread::spawn(move || accept(&listener, &dir, &of_thread));
        Self {
            address,
            shared,
            listener: Some(listener),
        }
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, for `--from`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Injects `fault` into the responses to all requests whose path contains `part`.
    pub fn fault(&self, part: &str, fault: Fault) {
        self.rule(part, fault, None);
    }

    /// Injects `fault` into the next `count` responses to requests whose path contains `part`.
    pub fn fault_times(&self, part: &str, fault: Fault, times: usize) {
        self.rule(part, fault, Some(times));
    }

    fn rule(&self, part: &str, fault: Fault, times: Option<usize>) {
        let part = part.to_owned();
        self.shared
            .rules
            .lock()
            .unwrap()
            .push(Rule { part, fault, times });
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.shared.rules.lock().unwrap().clear();
    }

    /// Delays each further response by this time.
    pub fn latency(&self, latency: Duration) {
        *self.shared.latency.lock().unwrap() = latency;
    }

    /// The requested paths so far, in order.
    pub fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// First and last bytes of the ranges requested so far, of files whose names have this suffix.
    pub fn parts(&self, end: &str) -> Vec<[usize; 2]> {
        let parts = self.shared.parts.lock().unwrap();
        let of_file = parts.iter().filter(|(path, _)| path.ends_with(end));
        of_file.map(|(_, part)| *part).collect()
    }

    /// Number of connections so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.lock().unwrap().len()
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
        self.listener.take().map(JoinHandle::join);
        for connection in self.shared.connections.lock().unwrap().iter() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, dir: &Path, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.ends.load(Ordering::SeqCst) {
            return;
        }
        let stream = stream.unwrap();
        stream.set_nodelay(true).unwrap();
        shared
            .connections
            .lock()
            .unwrap()
            .push_back(stream.try_clone().unwrap());
        let (dir, shared) = (dir.to_owned(), shared.clone());
        // Ignore errors: the client may disconnect at any time.
        thread::spawn(move || drop(converse(stream, &dir, &shared)));
    }
}

/// The relevant parts of a request.
struct Request {
    path: String,
    is_head: bool,
    /// First and last byte of the range.
    range: Option<(usize, usize)>,
}

fn converse(stream: TcpStream, dir: &Path, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    while let Some(request) = read_request(&mut reader)? {
        shared.requests.lock().unwrap().push(request.path.clone());
        if let Some((first, last)) = request.range {
            let part = (request.path.clone(), [first, last]);
            shared.parts.lock().unwrap().push(part);
        }
        thread::sleep(*shared.latency.lock().unwrap());
        let goes_on = match fault_of(&request.path, shared) {
            Some(fault) => answer_wrong(&mut stream, dir, &request, fault, shared)?,
            None => answer(&mut stream, dir, &request)?,
        };
        if !goes_on {
            break;
        }
    }
    stream.shutdown(Shutdown::Both)
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ');
    let is_head = words.next() == Some("HEAD");
    let path = words.next().unwrap_or_default().to_owned();
    let mut range = None;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? <= 2 {
            return Ok(Some(Request {
                path,
                is_head,
                range,
            }));
        }
        if let Some(value) = header.to_ascii_lowercase().strip_prefix("range: bytes=") {
            let (first, last) = value.trim().split_once('-').unwrap();
            range = Some((first.parse().unwrap(), last.parse().unwrap_or(usize::MAX)));
        }
    }
}

fn fault_of(path: &str, shared: &Shared) -> Option<Fault> {
    let mut rules = shared.rules.lock().unwrap();
    let rule = rules
        .iter_mut()
        .find(|rule| path.contains(&rule.part) && rule.times != Some(0))?;
    rule.times = rule.times.map(|times| times - 1);
    Some(rule.fault.clone())
}

fn file(dir: &Path, request: &Request) -> Option<Vec<u8>> {
    let path: PathBuf = dir.join(request.path.trim_start_matches('/'));
    fs::read(path).ok()
}

/// Whether the connection goes on.
fn answer(stream: &mut TcpStream, dir: &Path, request: &Request) -> io::Result<bool> {
    let Some(body) = file(dir, request) else {
        head(stream, "404 Not Found", &[("Content-Length", "0")])?;
        return Ok(true);
    };
    let whole = body.len();
    let (status, part, range) = match request.range {
        Some((first, last)) if first < whole => {
            let end = last.min(whole - 1) + 1;
            let range = format!("bytes {first}-{}/{whole}", end - 1);
            ("206 Partial Content", &body[first..end], Some(range))
        }
        _ => ("200 OK", &body[..], None),
    };
    let length = part.len().to_string();
    let mut headers = vec![("Content-Length", &*length)];
    headers.extend(range.as_deref().map(|range| ("Content-Range", range)));
    head(stream, status, &headers)?;
    if !request.is_head {
        stream.write_all(part)?;
    }
    Ok(true)
}

fn head(stream: &mut TcpStream, status: &str, headers: &[(&str, &str)]) -> io::Result<()> {
    let mut text = format!("HTTP/1.1 {status}\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    stream.write_all((text + "\r\n").as_bytes())
}

/// Whether the connection goes on.
fn answer_wrong(
    stream: &mut TcpStream,
    dir: &Path,
    request: &Request,
    fault: Fault,
    shared: &Shared,
) -> io::Result<bool> {
    match fault {
        Fault::Part(..) if request.range.is_none() => return answer(stream, dir, request),
        Fault::Part(range, body) => {
            let header = Some(("Content-Range", &*range));
            whole(stream, "206 Partial Content", header, &body)?;
        }
        Fault::Status(status) => whole(stream, &format!("{status} Wrong"), None, b"wrong\n")?,
        Fault::Redirect(to) => whole(stream, "302 Found", Some(("Location", &to)), b"")?,
        Fault::Redirects => {
            let to = format!("{}x", request.path);
            whole(stream, "302 Found", Some(("Location", &to)), b"")?;
        }
        Fault::Body(body) => whole(stream, "200 OK", None, &body)?,
        Fault::Encoded(encoding, body) => {
            whole(
                stream,
                "200 OK",
                Some(("Content-Encoding", encoding)),
                &body,
            )?;
        }
        broken => {
            let body = file(dir, request).unwrap_or_default();
            answer_broken(stream, &body, broken, shared)?;
            return Ok(false);
        }
    }
    Ok(true)
}

/// An answer that is complete, if not what was asked for.
fn whole(
    stream: &mut TcpStream,
    status: &str,
    header: Option<(&str, &str)>,
    body: &[u8],
) -> io::Result<()> {
    let length = body.len().to_string();
    let headers: Vec<_> = [("Content-Length", &*length)]
        .into_iter()
        .chain(header)
        .collect();
    head(stream, status, &headers)?;
    stream.write_all(body)
}

fn answer_broken(
    stream: &mut TcpStream,
    body: &[u8],
    fault: Fault,
    shared: &Shared,
) -> io::Result<()> {
    let ends = || shared.ends.load(Ordering::SeqCst);
    let begin = |stream: &mut TcpStream, length: usize| {
        head(stream, "200 OK", &[("Content-Length", &length.to_string())])
    };
    match fault {
        Fault::Cut(after) => {
            begin(stream, body.len())?;
            stream.write_all(&body[..after.min(body.len())])
        }
        Fault::WrongLength(more) => {
            let more = isize::try_from(more).unwrap();
            begin(stream, body.len().saturating_add_signed(more))?;
            stream.write_all(body)
        }
        Fault::Slow(len, pause) => {
            begin(stream, body.len())?;
            for part in body.chunks(len).take_while(|_| !ends()) {
                stream.write_all(part)?;
                thread::sleep(pause);
            }
            Ok(())
        }
        Fault::Endless => {
            head(stream, "200 OK", &[("Connection", "close")])?;
            stream.write_all(body)?;
            while !ends() {
                stream.write_all(&[b'x'; 1 << 16])?;
            }
            Ok(())
        }
        Fault::EndlessHeaders => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
            while !ends() {
                stream.write_all(b"X-More: and more\r\n")?;
            }
            Ok(())
        }
        // Until one of both ends.
        Fault::Hang => stream.read(&mut [0]).map(drop),
        Fault::Garbage => stream.write_all(b"\0\xff not HTTP at all\r\n\r\n\r\n"),
        _ => Ok(()),
    }
}
