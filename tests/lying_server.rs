//! Servers that lie or mean harm: answers without an end, messages that say they are huge, a byte a second, silence. Each
//! costs its own session an error with words or a deadline, bounded memory, and no other session anything.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use dialog_operator::citus::{Connection, NodeQuestion, SqlError, Target, Tls, commands, observe_node};
use futures::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// What a server does instead of answering.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    /// It answers.
    None,
    /// One message whose header says that it has a gigabyte, and the bytes of it for as long as they are taken.
    HugeMessage,
    EndlessRows,
    EndlessNotices,
    /// Each with a name of its own: a client remembers them.
    EndlessParameters,
    /// An error with a message of 8 MB: it would go into conditions.
    LongError,
    /// A notice of 4 MB, and then an answer.
    LongNotice,
    /// Bytes of a row, one a second.
    Trickle,
    Silence,
}

/// Where a server begins with it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    /// It has taken the login and does not say that it is ready.
    BeforeLogin,
    AtACall,
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[tag], &length[..], body].concat()
}

fn fields(tag: u8, severity: &str, text: &str) -> Vec<u8> {
    let body = format!("S{severity}\0V{severity}\0CXX000\0M{text}\0\0");
    message(tag, body.as_bytes())
}

fn row() -> Vec<u8> {
    let value = "x".repeat(10_000);
    let length = u32::try_from(value.len()).unwrap().to_be_bytes();
    message(b'D', &[&[0, 1][..], &length[..], value.as_bytes()].concat())
}

async fn lie(lie: Lie, stream: &mut TcpStream) -> std::io::Result<()> {
    match lie {
        Lie::None => {}
        Lie::HugeMessage => {
            stream.write_all(&[b'D', 0x40, 0, 0, 0]).await?;
            loop {
                stream.write_all(&[b'x'; 8_192]).await?;
            }
        }
        Lie::EndlessRows => {
            // A column, so that the rows are of something.
            let column = [&b"\0\x01json\0"[..], &[0; 6], &[0, 0, 0, 114], &[0; 8]].concat();
            stream.write_all(&message(b'T', &column)).await?;
            let row = row();
            loop {
                stream.write_all(&row).await?;
            }
        }
        Lie::EndlessNotices => {
            let notice = fields(b'N', "NOTICE", &"n".repeat(900));
            loop {
                stream.write_all(&notice).await?;
            }
        }
        Lie::EndlessParameters => {
            for number in 0_u64.. {
                stream.write_all(&message(b'S', format!("p{number}\0v\0").as_bytes())).await?;
            }
        }
        Lie::LongError => {
            stream.write_all(&fields(b'E', "ERROR", &"ё".repeat(4 << 20))).await?;
            stream.write_all(&message(b'Z', b"I")).await?;
        }
        Lie::LongNotice => stream.write_all(&fields(b'N', "NOTICE", &"n".repeat(4 << 20))).await?,
        Lie::Trickle => {
            stream.write_all(&[b'D', 0, 0, 1, 0]).await?;
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                stream.write_all(b"x").await?;
            }
        }
        Lie::Silence => std::future::pending().await,
    }
    Ok(())
}

/// One connection, as far as its client goes along. A request to cancel ends here as well.
async fn serve(mut stream: TcpStream, how: Lie, when: When) -> std::io::Result<()> {
    let length = stream.read_u32().await?;
    let mut startup = vec![0; usize::try_from(length).unwrap() - 4];
    stream.read_exact(&mut startup).await?;
    stream.write_all(&message(b'R', &[0; 4])).await?;
    if when == When::BeforeLogin {
        lie(how, &mut stream).await?;
    }
    stream.write_all(&[message(b'K', &[0; 8]), message(b'Z', b"I")].concat()).await?;
    let done = [message(b'C', b"DONE\0"), message(b'Z', b"I")].concat();
    loop {
        let tag = stream.read_u8().await?;
        let length = stream.read_u32().await?;
        let mut body = vec![0; usize::try_from(length).unwrap() - 4];
        stream.read_exact(&mut body).await?;
        // A simple query, or the end of another one.
        if matches!(tag, b'Q' | b'S') {
            lie(how, &mut stream).await?;
            if how != Lie::LongError {
                stream.write_all(&done).await?;
            }
        }
    }
}

async fn server(how: Lie, when: When) -> Target {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // It ends when the client has had enough of it.
            tokio::spawn(serve(stream, how, when));
        }
    });
    Target {
        node: format!("{how:?}"),
        hostaddr: IpAddr::V4(Ipv4Addr::LOCALHOST),
        host: "localhost".to_owned(),
        port,
        database: "dialogs".to_owned(),
    }
}

async fn look(session: &Connection) -> Result<(), SqlError> {
    let question = NodeQuestion { database: "dialogs", owner: "shop", settings: &[] };
    observe_node(session, &question).await.map(drop)
}

/// Memory of this process, in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// The most that was taken since.
struct Memory {
    before: u64,
    most: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Memory {
    fn watch() -> Self {
        let watch = Self { before: resident(), most: Arc::default(), over: Arc::default() };
        let (most, over) = (Arc::clone(&watch.most), Arc::clone(&watch.over));
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(resident(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        watch
    }
    fn grown_mb(&self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.most.load(Ordering::Relaxed).saturating_sub(self.before) >> 20
    }
}

/// The longest of an honest server's calls until told to stop.
async fn pace(stop: Arc<AtomicBool>) -> (usize, Duration) {
    let session = server(Lie::None, When::AtACall).await.connect(&Tls::Off).await.unwrap();
    let (mut calls, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        commands::checkpoint(&session).await.unwrap();
        longest = longest.max(asked.elapsed());
        calls += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    (calls, longest)
}

const FLOODS: [Lie; 4] = [Lie::HugeMessage, Lie::EndlessRows, Lie::EndlessNotices, Lie::EndlessParameters];

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_server_costs_itself_an_error_and_others_nothing() {
    let stop = Arc::new(AtomicBool::new(false));
    let others = [pace(Arc::clone(&stop)), pace(Arc::clone(&stop))].map(tokio::spawn);
    let memory = Memory::watch();

    for flood in FLOODS {
        let session = server(flood, When::AtACall).await.connect(&Tls::Off).await.unwrap();
        let asked = Instant::now();
        // Not a look: it wants one row, and gives up at the second one.
        let answer = match flood {
            Lie::EndlessRows => commands::checkpoint(&session).await,
            _ => look(&session).await,
        };
        let error = answer.unwrap_err().to_string();
        println!("{flood:?}: after {:?}: {error}", asked.elapsed());
        // On a machine that is busy the deadline may come before the sixteenth megabyte: either ends it.
        let ends = ["answered with more than 16 MiB", "did not answer"];
        assert!(ends.iter().any(|end| error.contains(end)), "{error}");
        assert!(session.is_broken(), "{flood:?}");
    }
    for flood in FLOODS {
        let asked = Instant::now();
        let error = server(flood, When::BeforeLogin).await.connect(&Tls::Off).await.unwrap_err().to_string();
        println!("{flood:?} before the login: after {:?}: {error}", asked.elapsed());
        assert!(error.contains(&format!("{flood:?}")) && error.len() < 200, "{error}");
        assert!(asked.elapsed() < Duration::from_secs(6));
    }

    let session = server(Lie::LongError, When::AtACall).await.connect(&Tls::Off).await.unwrap();
    let error = look(&session).await.unwrap_err().to_string();
    assert!(error.len() < 5_000 && error.contains("ёёё..."), "{} bytes", error.len());
    let session = server(Lie::LongNotice, When::AtACall).await.connect(&Tls::Off).await.unwrap();
    let warnings = commands::cleanup_orphans(&session).await.unwrap();
    assert!(!warnings.is_empty() && warnings.iter().all(|text| text.len() < 5_000));

    let grown = memory.grown_mb();
    stop.store(true, Ordering::Relaxed);
    for (calls, longest) in join_all(others).await.into_iter().map(Result::unwrap) {
        println!("another session: {calls} calls, the longest {longest:?}");
        assert!(calls > 5 && longest < Duration::from_secs(2), "{calls} calls, the longest {longest:?}");
    }
    println!("memory grew by {grown} MB");
    // Most of it is the names of a million settings.
    assert!(grown < 256, "memory grew by {grown} MB");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_or_trickles_costs_a_deadline() {
    let slow = [Lie::Trickle, Lie::Silence];
    let logins = join_all(slow.map(async |how| {
        let asked = Instant::now();
        let error = server(how, When::BeforeLogin).await.connect(&Tls::Off).await.unwrap_err();
        (asked.elapsed(), error.to_string())
    }));
    let calls = join_all(slow.map(async |how| {
        let session = server(how, When::AtACall).await.connect(&Tls::Off).await.unwrap();
        let asked = Instant::now();
        let error = look(&session).await.unwrap_err();
        assert!(session.is_broken());
        (asked.elapsed(), error.to_string())
    }));
    let (logins, calls) = tokio::join!(logins, calls);
    for (took, error) in logins {
        println!("login: after {took:?}: {error}");
        assert!(took < Duration::from_secs(7) && error.contains("within 5 s"), "{took:?}: {error}");
    }
    for (took, error) in calls {
        println!("call: after {took:?}: {error}");
        assert!(took < Duration::from_secs(12) && error.contains("within 10 s"), "{took:?}: {error}");
    }
}
