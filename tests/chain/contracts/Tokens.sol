// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

/// A dollar of six decimals that anyone mints.
contract TestToken is ERC20 {
    constructor() ERC20("Test dollar", "TUSD") {}

    function decimals() public pure override returns (uint8) {
        return 6;
    }

    function mint(address to, uint256 amount) external {
        _mint(to, amount);
    }
}

/// Keeps one unit in a hundred of every transfer.
contract TakingToken is TestToken {
    function _update(address from, address to, uint256 amount) internal override {
        uint256 kept = from == address(0) ? 0 : amount / 100;
        super._update(from, to, amount - kept);
        if (kept != 0) super._update(from, address(0), kept);
    }
}

/// Calls back whatever it was told to whenever it moves out of the account that it watches, and passes its failure on.
contract CallingToken is TestToken {
    address private watched;
    bytes private callback;

    function watch(address account, bytes calldata data) external {
        watched = account;
        callback = data;
    }

    function _update(address from, address to, uint256 amount) internal override {
        super._update(from, to, amount);
        if (watched == address(0) || (from != watched && to != watched)) return;
        (bool ok, bytes memory reason) = watched.call(callback);
        if (!ok) {
            assembly {
                revert(add(reason, 32), mload(reason))
            }
        }
    }
}

/// Moves, and answers nothing, as the oldest dollar does.
contract SilentToken {
    mapping(address account => uint256) public balanceOf;
    mapping(address owner => mapping(address spender => uint256)) public allowance;

    function decimals() external pure returns (uint8) {
        return 6;
    }

    function mint(address to, uint256 amount) external {
        balanceOf[to] += amount;
    }

    function approve(address spender, uint256 amount) external {
        allowance[msg.sender][spender] = amount;
    }

    function transfer(address to, uint256 amount) external {
        balanceOf[msg.sender] -= amount;
        balanceOf[to] += amount;
    }

    function transferFrom(address from, address to, uint256 amount) external {
        allowance[from][msg.sender] -= amount;
        balanceOf[from] -= amount;
        balanceOf[to] += amount;
    }
}

/// Answers false rather than fail.
contract RefusingToken is TestToken {
    function transfer(address, uint256) public pure override(ERC20) returns (bool) {
        return false;
    }
}
