//! Who gets in: keys, certificates, and regions that the hub knows.

use std::{fs, time::Duration};

use shared::nats::{
    connect::{self, Nats},
    roles::Role,
};
use testbed::nats::{self, Keys, Mesh, Server};
use tokio::time::timeout;

use crate::rig::{PATIENCE, region, settings};

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_the_right_key_and_certificate() {
    let mesh = Mesh::start(settings(), &["eu"]).await.unwrap();
    let (eu, role) = (mesh.region("eu"), Role::Gateway(region("eu")));
    let good = eu.nats(&role).unwrap();
    connect::connect(&good, &role, "test").await.unwrap();

    let strangers = Keys::generate().unwrap();
    let of_strangers = strangers.of(&role).unwrap().file;
    let (ca, cert, key) = (strangers.ca(), strangers.cert(), strangers.key());
    let bad: [(&str, Nats); 7] = [
        (
            "another key",
            Nats {
                nkey_file: Some(of_strangers),
                ..good.clone()
            },
        ),
        (
            "another region's key",
            Nats {
                nkey_file: mesh.hub().nats(&Role::Gateway(region("us"))).unwrap().nkey_file,
                ..good.clone()
            },
        ),
        (
            "no key",
            Nats {
                nkey_file: None,
                ..good.clone()
            },
        ),
        (
            "no certificate",
            Nats {
                cert_file: None,
                key_file: None,
                ..good.clone()
            },
        ),
        (
            "a certificate that nobody vouches for",
            Nats {
                cert_file: Some(cert),
                key_file: Some(key),
                ..good.clone()
            },
        ),
        (
            "a server that nobody vouches for",
            Nats {
                ca_file: Some(ca),
                ..good.clone()
            },
        ),
        (
            "half a certificate",
            Nats {
                key_file: None,
                ..good.clone()
            },
        ),
    ];
    for (why, nats) in bad {
        let refused = timeout(PATIENCE, connect::connect(&nats, &role, "test")).await.unwrap();
        assert!(refused.is_err(), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_lets_in_no_region_that_it_does_not_know() {
    let mesh = Mesh::start(settings(), &["eu"]).await.unwrap();
    let role = nats::Role::Region {
        hub: mesh.hub().leaf_url(),
    };
    let ap = Server::start(settings(), mesh.keys().clone(), "ap", role)
        .await
        .unwrap();
    let refused = async {
        while !fs::read_to_string(ap.log_path())
            .unwrap()
            .contains("Authorization Violation")
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, refused).await.unwrap();
}
