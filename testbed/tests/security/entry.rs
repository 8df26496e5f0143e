//! Which clients and which regions may connect.

use std::{fs, time::Duration};

use shared::nats::{
    connect::{self, Nats},
    roles::Role,
};
use testbed::nats::{self, Keys, Mesh, Server};
use tokio::time::timeout;

use crate::rig::{TIMEOUT, region, settings};

#[tokio::test(flavor = "multi_thread")]
async fn connecting_requires_the_right_key_and_certificate() {
    let mesh = Mesh::start(settings(), &["eu"]).await.unwrap();
    let (eu, role) = (mesh.region("eu"), Role::Gateway(region("eu")));
    let good = eu.nats(&role).unwrap();
    connect::connect(&good, &role, "test").await.unwrap();

    let unknown = Keys::generate().unwrap();
    let unknown_nkey = unknown.of(&role).unwrap().file;
    let (ca, cert, key) = (unknown.ca(), unknown.cert(), unknown.key());
    let bad: [(&str, Nats); 7] = [
        (
            "another key",
            Nats {
                nkey_file: Some(unknown_nkey),
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
            "a certificate of an unknown authority",
            Nats {
                cert_file: Some(cert),
                key_file: Some(key),
                ..good.clone()
            },
        ),
        (
            "a server of an unknown authority",
            Nats {
                ca_file: Some(ca),
                ..good.clone()
            },
        ),
        (
            "a certificate without its key",
            Nats {
                key_file: None,
                ..good.clone()
            },
        ),
    ];
    for (why, nats) in bad {
        let refused = timeout(TIMEOUT, connect::connect(&nats, &role, "test")).await.unwrap();
        assert!(refused.is_err(), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_refuses_a_region_that_it_does_not_know() {
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
    timeout(TIMEOUT, refused).await.unwrap();
}
