//! The demo, so far: loads, writes for ten seconds, and compares.
#[path = "../load/mod.rs"]
mod load;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kube = kube::Client::try_default().await?;
    let access = load::access::Access::of_cluster(&kube, "shop", "dialogs").await?;
    let at = std::time::Instant::now();
    println!("loaded {} in {:?}", load::rows::load(&access, 1_000_000).await?, at.elapsed());
    let at = std::time::Instant::now();
    println!("loaded {} in {:?}", load::rows::load(&access, 1_000_000).await?, at.elapsed());
    let writer = load::writer::Writer::start(&access, &load::writer::Pace::default(), "quiet");
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    let ledger = writer.stop().await;
    println!("{:?}", ledger.phase("quiet"));
    let at = std::time::Instant::now();
    let client = access.connect().await?;
    let found = ledger.compare(&client, 1_000_000).await?;
    println!("{} {} {:?} {:?}", found.rows, found.expected, found.is_none(), at.elapsed());
    Ok(())
}
