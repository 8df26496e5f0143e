//! The accounts as the part of a nats-server's configuration that is named `roles.conf`.

use std::fmt::{self, Write};

use super::{
    super::{
        roles::{ANSWER_WITHIN, Permissions},
        subject::TRACE_HOPS,
    },
    Accounts, Export, Import, Importers, Kind, Limits, User,
};
use crate::id::Region;

/// The text of `roles.conf` in a mesh of `regions`: the accounts, their users and permissions. The server reads the users'
/// public keys from its environment.
pub fn conf(accounts: &Accounts, regions: &[Region]) -> String {
    let mut text = String::new();
    write(&mut text, accounts, regions).expect("a string takes what is written");
    text
}

fn write(text: &mut String, accounts: &Accounts, regions: &[Region]) -> fmt::Result {
    let names: Vec<&str> = regions.iter().map(Region::as_str).collect();
    write!(
        text,
        "# Who may do what, in a mesh of {}. Made by `peal roles`, to be made again when regions or apps change.\n\
         # Each user's public key comes from the environment of nats-server.\n\n",
        names.join(", ")
    )?;
    if let Some(system) = accounts.all.last() {
        writeln!(text, "system_account: {:?}\n", system.name)?;
    }
    if let Some(linked) = &accounts.linked {
        writeln!(
            text,
            "# The account that the link to the hub connects.\nPEAL_ACCOUNT: {linked:?}\n"
        )?;
    }
    text.push_str("accounts {\n");
    for account in &accounts.all {
        writeln!(text, "  {:?} {{", account.name)?;
        if account.jetstream {
            text.push_str("    jetstream: enabled\n");
        }
        limits(text, account.limits)?;
        if account.traced {
            // Who publishes decides which share of messages is sampled, so every sampled message is reported.
            writeln!(text, "    msg_trace {{ dest: {TRACE_HOPS:?}, sampling: 100 }}")?;
        }
        list(text, "exports", account.exports.iter().map(export))?;
        list(text, "imports", account.imports.iter().map(import))?;
        text.push_str("    users: [\n");
        for user in &account.users {
            write_user(text, user)?;
        }
        text.push_str("    ]\n  }\n");
    }
    text.push_str("}\n");
    Ok(())
}

fn limits(text: &mut String, limits: Limits) -> fmt::Result {
    writeln!(
        text,
        "    limits {{ max_conn: {}, max_leafnodes: {}, max_subs: {}, max_payload: {} }}",
        limits.connections, limits.leaf_nodes, limits.subscriptions, limits.payload
    )
}

fn list(text: &mut String, name: &str, entries: impl Iterator<Item = String>) -> fmt::Result {
    let mut entries = entries.peekable();
    if entries.peek().is_none() {
        return Ok(());
    }
    writeln!(text, "    {name}: [")?;
    for entry in entries {
        writeln!(text, "      {{ {entry} }}")?;
    }
    text.push_str("    ]\n");
    Ok(())
}

fn export(export: &Export) -> String {
    let subject = &export.subject;
    let what = match export.kind {
        Kind::Stream => format!("stream: {subject:?}"),
        Kind::ServiceOfMany => format!("service: {subject:?}, response: stream"),
        Kind::Service {
            traced,
            answered_within,
        } => {
            let traced = if traced { ", allow_trace: true" } else { "" };
            let within = answered_within.map_or_else(String::new, |within| {
                format!(", response_threshold: \"{}s\"", within.as_secs())
            });
            format!("service: {subject:?}{traced}{within}")
        }
    };
    match &export.to {
        Importers::Named(position) => format!("{what}, account_token_position: {position}"),
        Importers::One(account) => format!("{what}, accounts: [{account:?}]"),
        Importers::All => what,
    }
}

fn import(import: &Import) -> String {
    let word = match import.kind {
        Kind::Stream => "stream",
        Kind::Service { .. } | Kind::ServiceOfMany => "service",
    };
    let renamed = if import.local == import.subject {
        String::new()
    } else {
        format!(", to: {:?}", import.local)
    };
    format!(
        "{word}: {{ account: {:?}, subject: {:?} }}{renamed}",
        import.from, import.subject
    )
}

fn write_user(text: &mut String, user: &User) -> fmt::Result {
    writeln!(text, "      {{\n        nkey: ${}", user.variable)?;
    if let Some(permissions) = &user.permissions {
        let Permissions {
            publish,
            subscribe,
            answers,
        } = permissions;
        text.push_str("        permissions: {\n");
        allow(text, "publish", publish)?;
        allow(text, "subscribe", subscribe)?;
        if *answers {
            let within = ANSWER_WITHIN.as_secs();
            writeln!(text, "          allow_responses: {{ max: 1, expires: \"{within}s\" }}")?;
        }
        text.push_str("        }\n");
    }
    text.push_str("      }\n");
    Ok(())
}

fn allow(text: &mut String, what: &str, subjects: &[String]) -> fmt::Result {
    let mut subjects: Vec<&String> = subjects.iter().collect();
    subjects.sort();
    subjects.dedup();
    writeln!(text, "          {what}: {{\n            allow: [")?;
    for subject in subjects {
        writeln!(text, "              {subject:?}")?;
    }
    text.push_str("            ]\n          }\n");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nats::{
        accounts::{Names, of_hub, of_region},
        roles::Parties,
    };

    /// A change of a role's permissions must show in these files, so that it is reviewed there.
    #[test]
    fn the_example_files_match_the_code() {
        let parties = Parties {
            regions: ["eu", "us"].map(|name| name.parse().unwrap()).into(),
            apps: vec!["shop".parse().unwrap()],
            beside_former: false,
        };
        let regions = &parties.regions;
        let examples = [
            (
                of_hub(&parties),
                include_str!("../../../../deploy/nats/example/hub/roles.conf"),
            ),
            (
                of_region(&regions[0], &regions[1..], &parties, &Names::plain(&parties.apps)),
                include_str!("../../../../deploy/nats/example/eu/roles.conf"),
            ),
        ];
        for (accounts, example) in examples {
            assert_eq!(
                conf(&accounts, regions),
                example,
                "generate the file again; deploy/README.md says how"
            );
        }
    }
}
