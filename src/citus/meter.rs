//! How much a server may answer to one call: a connection under the connection, which counts. What is said over it is
//! elsewhere.

use std::{
    error::Error,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use futures::future::{BoxFuture, Ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};

/// More than any answer that is looked for, and little enough for hundreds of sessions: a message is taken in whole
/// before it is looked at, however long it says it is.
const MOST: usize = 16 << 20;

/// The same for a login: what a server may say of itself there is kept for as long as the session lasts.
const MOST_OF_A_LOGIN: usize = 1 << 20;

/// What came over one connection since its last call began, and how much may.
#[derive(Debug)]
pub(super) struct Meter {
    taken: AtomicUsize,
    most: AtomicUsize,
}

impl Default for Meter {
    fn default() -> Self {
        Self { taken: AtomicUsize::new(0), most: AtomicUsize::new(MOST_OF_A_LOGIN) }
    }
}

impl Meter {
    /// A call begins.
    pub(super) fn begin(&self) {
        self.taken.store(0, Ordering::Relaxed);
        self.most.store(MOST, Ordering::Relaxed);
    }
    /// Why nothing more is read, if nothing is.
    pub(super) fn refusal(&self) -> Option<String> {
        let most = self.most.load(Ordering::Relaxed);
        let over = self.taken.load(Ordering::Relaxed) > most;
        over.then(|| format!("answered with more than {} MiB", most >> 20))
    }
    fn count(&self, bytes: usize) -> io::Result<()> {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        self.refusal().map_or(Ok(()), |why| Err(io::Error::other(why)))
    }
}

/// Makes connections that a meter counts, over those that another connector makes.
#[derive(Clone, Debug)]
pub(super) struct Metered<C> {
    pub(super) connector: C,
    pub(super) meter: Arc<Meter>,
}

impl<C, S> MakeTlsConnect<S> for Metered<C>
where
    C: MakeTlsConnect<S>,
    C::TlsConnect: Send + 'static,
    <C::TlsConnect as TlsConnect<S>>::Future: Send,
    S: Send + 'static,
{
    type Stream = Counted<C::Stream>;
    type TlsConnect = Metered<C::TlsConnect>;
    type Error = C::Error;
    fn make_tls_connect(&mut self, domain: &str) -> Result<Self::TlsConnect, Self::Error> {
        let connector = self.connector.make_tls_connect(domain)?;
        Ok(Metered { connector, meter: Arc::clone(&self.meter) })
    }
}

impl<C, S> TlsConnect<S> for Metered<C>
where
    C: TlsConnect<S> + Send + 'static,
    C::Future: Send,
    S: Send + 'static,
{
    type Stream = Counted<C::Stream>;
    type Error = C::Error;
    type Future = BoxFuture<'static, Result<Self::Stream, Self::Error>>;
    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let stream = self.connector.connect(stream).await?;
            Ok(Counted { stream, meter: self.meter })
        })
    }
}

/// A connection that gives out no more than its meter allows.
pub(super) struct Counted<S> {
    stream: S,
    meter: Arc<Meter>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        Poll::Ready(self.meter.count(buffer.filled().len() - before))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Counted<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.stream.channel_binding()
    }
}

/// In the place of TLS where there is none: the bytes as they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain;

/// A connection without TLS.
pub(super) struct PlainStream<S>(S);

impl<S: AsyncRead + AsyncWrite + Unpin> MakeTlsConnect<S> for Plain {
    type Stream = PlainStream<S>;
    type TlsConnect = Self;
    type Error = Box<dyn Error + Sync + Send>;
    fn make_tls_connect(&mut self, _: &str) -> Result<Self, Self::Error> {
        Ok(Self)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsConnect<S> for Plain {
    type Stream = PlainStream<S>;
    type Error = Box<dyn Error + Sync + Send>;
    type Future = Ready<Result<PlainStream<S>, Self::Error>>;
    fn connect(self, stream: S) -> Self::Future {
        futures::future::ready(Ok(PlainStream(stream)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PlainStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PlainStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for PlainStream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}
