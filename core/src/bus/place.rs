//! Where Redis is: at an address, or wherever Sentinel says that the master is.

use std::time::Duration;

use redis::{AsyncConnectionConfig, Client, ErrorKind, RedisError, RedisResult};

/// Where Redis is.
#[derive(Clone, Debug)]
pub enum Place {
    /// One server, with TLS or without.
    Server(Client),
    /// Asked of the sentinels, whoever answers first, whenever a connection is made.
    Sentinel(Sentinels),
}

/// The sentinels of one master.
#[derive(Clone)]
pub struct Sentinels {
    sentinels: Vec<Client>,
    /// What the master is called.
    name: String,
    /// What goes before the master's address: scheme and who asks.
    before: String,
    /// What goes after it: the database.
    after: String,
}

impl std::fmt::Debug for Sentinels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The rest can hold a password.
        write!(f, "Sentinels of {}", self.name)
    }
}

fn refused(what: &'static str) -> RedisError {
    RedisError::from((ErrorKind::InvalidClientConfig, what))
}

impl Place {
    /// Reads `redis://`, `rediss://`, `unix://`, and `redis+sentinel://[user:password@]host[:port],…/name[/database]`, whose
    /// `rediss+sentinel://` asks the sentinels in the clear and the master by TLS.
    ///
    /// # Errors
    /// When it is none of these. The text is not repeated: it can hold a password.
    pub fn parse(url: &str) -> RedisResult<Self> {
        let Some((scheme, rest)) = url.split_once("+sentinel://") else { return Client::open(url).map(Self::Server) };
        let (who, rest) = rest.rsplit_once('@').map_or(("", rest), |(who, rest)| (who, rest));
        let mut parts = rest.split('/');
        let hosts = parts.next().unwrap_or_default();
        let name = parts.next().filter(|n| !n.is_empty());
        let name = name.ok_or_else(|| refused("after the sentinels comes /name, what the master is called"))?;
        let database = parts.next().unwrap_or("0");
        if database.parse::<u16>().is_err() || parts.next().is_some() {
            return Err(refused("after the master's name comes at most the number of a database"));
        }
        let open = |host: &str| {
            // An address of version 6 has colons of its own, in brackets.
            let has_port = host.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
            let port = if has_port { "" } else { ":26379" };
            Client::open(format!("redis://{host}{port}"))
        };
        let sentinels = hosts.split(',').filter(|h| !h.is_empty()).map(open).collect::<RedisResult<Vec<_>>>()?;
        if sentinels.is_empty() {
            return Err(refused("no sentinel is named"));
        }
        let at = if who.is_empty() { "" } else { "@" };
        let before = format!("{scheme}://{who}{at}");
        // What is wrong in it is said at start, and not when a master is known.
        Client::open(format!("{before}localhost:6379/{database}"))?;
        Ok(Self::Sentinel(Sentinels { sentinels, name: name.to_owned(), before, after: format!("/{database}") }))
    }

    /// A client of the server that takes messages now.
    ///
    /// # Errors
    /// When no sentinel knows it, or it says itself that it is none.
    pub async fn client(&self, within: Duration) -> RedisResult<Client> {
        let sentinels = match self {
            Self::Server(client) => return Ok(client.clone()),
            Self::Sentinel(sentinels) => sentinels,
        };
        // All at once: one that takes connections and never answers must not keep the others from being heard.
        let asked = sentinels.sentinels.iter().map(|sentinel| Box::pin(sentinels.ask(sentinel, within)));
        futures::future::select_ok(asked).await.map(|(client, _)| client)
    }
}

impl Sentinels {
    async fn ask(&self, sentinel: &Client, within: Duration) -> RedisResult<Client> {
        let mut asked = sentinel.get_multiplexed_async_connection_with_config(&settings(within)).await?;
        let mut question = redis::cmd("SENTINEL");
        question.arg("get-master-addr-by-name").arg(&self.name);
        let found: Option<(String, u16)> = question.query_async(&mut asked).await?;
        let (host, port) = found.ok_or_else(|| {
            RedisError::from((ErrorKind::Client, "the sentinel knows no such master", self.name.clone()))
        })?;
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let client = Client::open(format!("{}{host}:{port}{}", self.before, self.after))?;
        // A sentinel that has not heard of a failover yet still names the old one, which may be a replica by now.
        let mut master = client.get_multiplexed_async_connection_with_config(&settings(within)).await?;
        let role: Vec<redis::Value> = redis::cmd("ROLE").query_async(&mut master).await?;
        match role.first().map(redis::from_redis_value_ref::<String>) {
            Some(Ok(role)) if role == "master" => Ok(client),
            _ => Err(RedisError::from((ErrorKind::Io, "the server that the sentinel names is not the master yet"))),
        }
    }
}

/// How a connection for questions and answers is made.
pub fn settings(within: Duration) -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(within)).set_response_timeout(Some(within))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_form_is_read_and_what_is_none_is_refused_without_its_password() {
        crate::install_tls();
        let fine = [
            "redis://h:1",
            "rediss://u:p@h:1/2",
            "unix:///tmp/s",
            "redis+sentinel://a,b:26380,[::1],[::1]:26380/main",
            "rediss+sentinel://:secret@a:1/main/3",
        ];
        for url in fine {
            assert!(Place::parse(url).is_ok(), "{url}");
        }
        for url in ["redis+sentinel://a:1", "redis+sentinel:///main", "redis+sentinel://u:secret@a/main/x"] {
            let error = Place::parse(url).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
