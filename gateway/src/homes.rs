//! Where a recipient's facts are, and making a home for one who has none.

use shared::{
    id::{AddressId, Region},
    nats::{facts, publish::NotStored},
    recipient::{Fact, FactName, Profile, Recipient, RecipientKey},
};

use crate::parts::Parts;

impl Parts {
    /// The home of `key`, registered or not: nobody's facts are elsewhere.
    pub(crate) fn home_or(&self, key: &RecipientKey, default: &Region) -> Region {
        self.directory.home(key).unwrap_or_else(|| default.clone())
    }

    /// Everything that the recipient's home knows.
    pub(crate) async fn read(&self, home: &Region, key: &RecipientKey) -> Result<Recipient, facts::NotRead> {
        facts::read(&self.js, &self.here, home, key).await
    }

    /// Stores `fact` in the recipient's home.
    pub(crate) async fn write(&self, home: &Region, key: &RecipientKey, fact: Fact) -> Result<(), NotStored> {
        facts::write(&self.js, &self.here, home, key, &fact).await.map(|_| ())
    }

    /// Stores a profile and then says where its recipient lives, so that nobody is sent to a home that knows nothing.
    pub(crate) async fn settle(&self, key: &RecipientKey, profile: Profile) -> Result<(), NotStored> {
        let (home, at) = (profile.home.clone(), profile.updated_at);
        self.write(&home, key, Fact::Profile(profile)).await?;
        if self.directory.home(key).as_ref() != Some(&home) {
            self.directory.put_home(&self.js, &self.here, key, &home, at).await?;
        }
        Ok(())
    }

    /// Removes every fact of a recipient, and then who lives where and whose its addresses are. `known` is what its home
    /// said. Whatever fails in between, a repetition finds what is left: the profile is the last fact to go.
    pub(crate) async fn forget(&self, home: &Region, key: &RecipientKey, known: &Recipient) -> Result<(), NotStored> {
        let at = self.clock.now();
        for (address, _) in &known.addresses {
            self.remove_address(home, key, address.id).await?;
        }
        for name in [FactName::Preferences, FactName::Profile] {
            facts::remove(&self.js, &self.here, home, key, name).await?;
        }
        self.directory.forget_home(&self.js, &self.here, key, at).await
    }

    /// Removes an address and, unless another recipient has registered it since, says that it is nobody's.
    pub(crate) async fn remove_address(
        &self,
        home: &Region,
        key: &RecipientKey,
        address: AddressId,
    ) -> Result<(), NotStored> {
        facts::remove(&self.js, &self.here, home, key, FactName::Address(address)).await?;
        if self.directory.owner(&key.app, address).as_ref() == Some(&key.recipient) {
            self.directory
                .forget_owner(&self.js, &self.here, &key.app, address, self.clock.now())
                .await?;
        }
        Ok(())
    }

    /// The home of `key`; a recipient that nobody registered gets one at `default`.
    pub(crate) async fn ensure_home(&self, key: &RecipientKey, default: &Region) -> Result<Region, NotStored> {
        if let Some(home) = self.directory.home(key) {
            return Ok(home);
        }
        let home = default.clone();
        let profile = Profile {
            home: home.clone(),
            locale: None,
            timezone: None,
            updated_at: self.clock.now(),
        };
        self.settle(key, profile).await?;
        Ok(home)
    }
}
